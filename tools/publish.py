from visionattn.cli import main

main("publish")
