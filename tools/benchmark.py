from visionattn.cli import main

main("benchmark")
