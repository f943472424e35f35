from visionattn.cli import main

main("cards")
