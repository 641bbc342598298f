"""The program under mpirun: launch lines, devices, the hand-out of runs, and the work of a rank."""

from pathlib import Path

from lambda_hat.user_folder import is_script_of, tidy_path

_folder = Path(__file__).resolve().parent
if is_script_of(_folder):
    tidy_path(_folder)
