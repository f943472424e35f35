from visionattn.cli import main

main("cost")
