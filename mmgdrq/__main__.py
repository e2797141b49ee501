"""Run the console command: python -m mmgdrq COMMAND ..."""

from .cli import main

if __name__ == '__main__':
    main()
