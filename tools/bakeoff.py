from visionattn.cli import main

main("bakeoff")
