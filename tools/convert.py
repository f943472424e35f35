from visionattn.cli import main

main("convert")
