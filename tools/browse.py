from visionattn.cli import main

main("browse")
