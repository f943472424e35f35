from visionattn.cli import main

main("download")
