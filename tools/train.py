from visionattn.cli import main

main("train")
