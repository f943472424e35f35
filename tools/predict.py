from visionattn.cli import main

main("predict")
