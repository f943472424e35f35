from visionattn.cli import main

main("test")
