from visionattn.cli import main

main("prepare-objects")
