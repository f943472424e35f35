"""`python -m visionattn.cli`, which `torchrun -m visionattn.cli` runs too."""

from visionattn.cli import main

if __name__ == "__main__":
    main()
