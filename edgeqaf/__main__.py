"""``python -m edgeqaf``, which is what torchrun and accelerate launch start."""

from edgeqaf.cli import main

if __name__ == "__main__":
    main()
