"""``python -m selectit_hf`` is the ``selectit`` command."""

from selectit_hf.cli import main

if __name__ == "__main__":
    main()
