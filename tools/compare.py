from visionattn.cli import main

main("compare")
