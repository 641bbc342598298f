"""The commands of the fake PBS: `python -S -E pbs_clients.py qsub|qstat|qdel FOLDER WORDS`.

Messages and exit statuses are those of OpenPBS 23.06, whose clients exit with the server's error number modulo 256.
"""

from __future__ import annotations

import getopt
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path

from pbs_server import SERVER, clock, job_numbers, read_job, write

VERSION = "23.06.06"
UNKNOWN_JOB, UNKNOWN_QUEUE, BAD_ACCOUNT, FINISHED_JOB = 153, 170, 201, 35
OPTIONS = "a:A:c:C:e:fGhIj:J:k:l:m:M:N:o:p:P:q:r:R:S:u:v:VW:Xz"


class Refusal(Exception):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def directives(script: str) -> list[str]:
    """The words of the `#PBS` lines; they end where commands begin."""
    words: list[str] = []
    for line in script.splitlines():
        if line.startswith("#PBS"):
            words += shlex.split(line[len("#PBS") :], comments=True)
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return words


def options_of(words: list[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The options, the resources of every -l, and what is left."""
    try:
        pairs, operands = getopt.getopt(words, OPTIONS)
    except getopt.GetoptError as error:
        raise Refusal(f"{error}\nusage: qsub [-A account] [-l resources] [-q queue] ... [script]", 2) from None
    resources: dict[str, str] = {}
    for name, value in pairs:
        if name == "-l":
            for item in value.split(","):
                key, _, amount = item.strip().partition("=")
                resources[key] = amount
    return {name: value for name, value in pairs if name != "-l"}, resources, operands


def qsub(folder: Path, words: list[str]) -> int:
    config = json.loads((folder / "config.json").read_text())
    given, resources, operands = options_of(words)
    if operands:
        try:
            script = Path(operands[0]).read_text()
        except OSError as error:
            raise Refusal(f"script file:: {error.strerror}", 1) from None
    else:
        script = sys.stdin.read()
    in_script, in_script_resources, _ = options_of(directives(script))
    options = {**in_script, **given}
    resources = {"walltime": "120:00:00", "place": "free", "select": "1", **in_script_resources, **resources}

    queue = options.get("-q", config["queues"][0])
    if queue not in config["queues"]:
        raise Refusal("Unknown queue", UNKNOWN_QUEUE)
    if config["accounts"] is not None and options.get("-A") not in config["accounts"]:
        raise Refusal(config["account_message"], BAD_ACCOUNT)

    number = 1 + max(job_numbers(folder), default=0)
    while True:  # the script's name is the claim on the number
        try:
            handle = os.open(folder / f"jobs/{number}.script", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            number += 1
        else:
            break
    with os.fdopen(handle, "w") as spooled:
        spooled.write(script)

    host, here = socket.gethostname(), os.getcwd()
    name = options.get("-N", Path(operands[0]).name if operands else "STDIN")

    def path_of(option: str, letter: str) -> str:
        path = options.get(option, f"{name}.{letter}{number}")
        return f"{host}:{os.path.join(here, path.rpartition(':')[2])}"

    variables = dict(os.environ) if "-V" in options else {}
    for item in filter(None, options.get("-v", "").split(",")):
        key, found, value = item.partition("=")
        variables[key] = value if found else os.environ.get(key, "")
    submitter = {f"PBS_O_{key}": os.environ[key] for key in ("HOME", "PATH", "SHELL", "LANG") if key in os.environ}
    variables |= {**submitter, "PBS_O_HOST": host, "PBS_O_WORKDIR": here, "PBS_O_QUEUE": queue, "PBS_O_SYSTEM": "Linux"}
    user = os.environ.get("USER", "root")
    nodect = sum(int(part.split(":")[0]) if part[0].isdigit() else 1 for part in resources["select"].split("+"))
    attributes = {
        "Job_Name": name,
        "Job_Owner": f"{user}@{host}",
        "job_state": "Q",
        "queue": queue,
        "server": SERVER,
        "ctime": clock(),
        "Error_Path": path_of("-e", "e"),
        "Join_Path": options.get("-j", "n"),
        "Output_Path": path_of("-o", "o"),
        "mtime": clock(),
        "qtime": clock(),
        "Rerunable": "False" if options.get("-r") == "n" else "True",
        "Resource_List": {**resources, "nodect": nodect},
        "Variable_List": {key: value for key, value in variables.items() if key.startswith("PBS_O_")},
        "Submit_arguments": shlex.join(words),
        "project": options.get("-P", "_pbs_project_default"),
    }
    if "-A" in options:
        attributes["Account_Name"] = options["-A"]
    write(folder / f"jobs/{number}.json", {"attributes": attributes, "variables": variables})
    print(f"{number}.{SERVER}")
    return 0


def number_of(word: str, command: str) -> int | None:
    number, _, server = word.partition(".")
    if not number.isdigit() or server not in ("", SERVER):
        print(f"{command}: illegally formed job identifier: {word}", file=sys.stderr)
        return None
    return int(number)


def server_attributes(folder: Path, config: dict) -> dict:
    states = [read_job(folder, number)["attributes"]["job_state"] for number in job_numbers(folder)]
    queued, running = states.count("Q"), states.count("R")
    attributes = {
        "server_state": "Active",
        "server_host": socket.gethostname(),
        "scheduling": "True",
        "total_jobs": len(states) if config["history"] else queued + running,
        "state_count": f"Transit:0 Queued:{queued} Held:0 Waiting:0 Running:{running} Exiting:0 Begun:0 ",
        "default_queue": config["queues"][0],
        "pbs_version": VERSION,
    }
    if config["history"] is not None:
        attributes["job_history_enable"] = str(config["history"])
    return attributes


def qstat(folder: Path, words: list[str]) -> int:
    config = json.loads((folder / "config.json").read_text())
    try:
        pairs, operands = getopt.gnu_getopt(words, "xHfBtwu:F:")
    except getopt.GetoptError as error:
        raise Refusal(str(error), 2) from None
    options = dict(pairs)
    if "-x" in options and "-f" not in options:
        # The table itself is left out.
        if not config["history"]:
            print("qstat: PBS is not configured to maintain job history ", file=sys.stderr)
        return 0
    if "-f" not in options or options.get("-F") != "json":
        raise Refusal("the fake knows `qstat -x`, `qstat [-x] -f -F json [id ...]` and `qstat -Bf -F json` only", 2)
    answer: dict = {"timestamp": int(time.time()), "pbs_version": VERSION, "pbs_server": SERVER}
    status = 0
    past = "-x" in options or "-H" in options
    if "-B" in options:
        answer["Server"] = {SERVER: server_attributes(folder, config)}
    elif past and not config["history"]:
        for word in operands or [""]:
            print(f"qstat: PBS is not configured to maintain job history {word}", file=sys.stderr)
    else:
        known = job_numbers(folder)
        numbers = [number_of(word, "qstat") for word in operands] if operands else known
        for number in numbers:
            if number is None:
                status = 1
                continue
            job_id = f"{number}.{SERVER}"
            attributes = read_job(folder, number)["attributes"] if number in known else None
            ended = attributes is not None and attributes["job_state"] == "F"
            if attributes is None or (ended and not config["history"]):
                if operands:
                    print(f"qstat: Unknown Job Id {job_id}", file=sys.stderr)
                    status = UNKNOWN_JOB
            elif ended and not past:
                if operands:
                    hint = "Job has finished, use -x or -H to obtain historical job information"
                    print(f"qstat: {job_id} {hint}", file=sys.stderr)
                    status = FINISHED_JOB
            else:
                answer.setdefault("Jobs", {})[job_id] = attributes
    print(json.dumps(answer, indent=4))
    return status


def qdel(folder: Path, words: list[str]) -> int:
    try:
        _, operands = getopt.gnu_getopt(words, "xW:")
    except getopt.GetoptError as error:
        raise Refusal(str(error), 2) from None
    config = json.loads((folder / "config.json").read_text())
    known = job_numbers(folder)
    status = 0
    for number in [number_of(word, "qdel") for word in operands]:
        if number is None:
            status = 1
            continue
        ended = number in known and read_job(folder, number)["attributes"]["job_state"] == "F"
        if number not in known or (ended and not config["history"]):
            print(f"qdel: Unknown Job Id {number}.{SERVER}", file=sys.stderr)
            status = UNKNOWN_JOB
        elif ended:
            print(f"qdel: Job has finished {number}.{SERVER}", file=sys.stderr)
            status = FINISHED_JOB
        else:
            (folder / f"jobs/{number}.delete").touch()
    return status


def main(command: str, folder: Path, words: list[str]) -> int:
    try:
        return {"qsub": qsub, "qstat": qstat, "qdel": qdel}[command](folder, words)
    except Refusal as refusal:
        print(f"{command}: {refusal}", file=sys.stderr)
        return refusal.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
