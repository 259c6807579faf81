"""``python -m privfedrl`` is the command ``privfedrl``."""

from privfedrl.cli.main import run

if __name__ == "__main__":
    run()
