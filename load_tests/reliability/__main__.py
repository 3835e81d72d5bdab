"""`python -m load_tests.reliability`: see `--help`."""

import click

from load_tests.reliability import report, soak_command
from load_tests.reliability.chaos import command as chaos_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Find what breaks a server or a job under long load and under faults. Each run is a file of JSON."""


main.add_command(soak_command.main)
main.add_command(chaos_command.main)
main.add_command(report.main)

if __name__ == "__main__":
    main()
