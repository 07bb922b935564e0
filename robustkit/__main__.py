"""python -m robustkit."""

from robustkit.cli import run

if __name__ == "__main__":
    run()
