"""The commands of the fake PBS: `python -S -E pbs_clients.py qsub|qstat|qdel|qhold|qrls|qsig FOLDER WORDS`.

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

from pbs_server import SERVER, clock, job_numbers, read_job, seconds_of, write

VERSION = "23.06.06"
UNKNOWN_JOB, UNKNOWN_QUEUE, BAD_ACCOUNT, FINISHED_JOB, OVER_LIMIT, NO_SERVER = 153, 170, 201, 35, 188, 255
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
    """The options, the resources of every -l, and what is left. `-W umask=022` is the option `umask`."""
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
    options = {name: value for name, value in pairs if name not in ("-l", "-W")}
    options |= dict(item.partition("=")[::2] for name, value in pairs if name == "-W" for item in value.split(","))
    return options, resources, operands


def wanted(resources: dict[str, str]) -> dict[str, float]:
    """What a job asks for, as the limits of a queue count it."""
    chunks = []
    for part in resources["select"].split("+"):
        count, _, more = part.partition(":") if part[0].isdigit() else ("1", "", part)
        chunks.append((int(count), dict(item.partition("=")[::2] for item in more.split(":") if item)))
    return {
        "ncpus": sum(count * int(chunk.get("ncpus", 1)) for count, chunk in chunks),
        "nodect": sum(count for count, _ in chunks),
        "walltime": seconds_of(resources["walltime"]),
    }


def over_limit(resources: dict[str, str], limits: dict[str, str | int]) -> bool:
    """Whether a job asks for more than `resources_max`."""
    asks = wanted(resources)
    return any(asks[key] > (seconds_of(most) if key == "walltime" else most) for key, most in limits.items())


def start_time(word: str) -> float:
    """`-a [[CC]YY]MMDDhhmm[.SS]` in seconds since the epoch; the fake takes the full form alone."""
    return time.mktime(time.strptime(word, "%Y%m%d%H%M.%S"))


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
    limits = config["resources_max"]
    if any(over_limit(resources, limits.get(where, {})) for where in ("", queue)):
        raise Refusal("Job violates queue and/or server resource limits", OVER_LIMIT)

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
    if "umask" in options:
        attributes["umask"] = int(options["umask"])
    job = {"attributes": attributes, "variables": variables}
    if "-h" in options:
        attributes |= {"job_state": "H", "Hold_Types": "u"}
    elif "-a" in options:
        attributes |= {"job_state": "W", "Execution_Time": clock(start_time(options["-a"]))}
        job["begin"] = start_time(options["-a"])
    elif config["transit"]:
        attributes["job_state"] = "T"
        job["begin"] = time.time() + config["transit"]
    write(folder / f"jobs/{number}.json", job)
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
    names = {"Transit": "T", "Queued": "Q", "Held": "H", "Waiting": "W", "Running": "R", "Exiting": "E"}
    counts = " ".join(f"{name}:{states.count(letter)}" for name, letter in names.items())
    attributes = {
        "server_state": "Active",
        "server_host": socket.gethostname(),
        "scheduling": "True",
        "total_jobs": len(states) if config["history"] else len(states) - states.count("F"),
        "state_count": f"{counts} Begun:0 ",
        "default_queue": config["queues"][0],
        "pbs_version": VERSION,
    }
    if config["history"] is not None:
        attributes["job_history_enable"] = str(config["history"])
    if "" in config["resources_max"]:
        attributes["resources_max"] = config["resources_max"][""]
    return attributes


def queue_attributes(config: dict, queue: str) -> dict:
    limits = config["resources_max"].get(queue)
    attributes = {"queue_type": "Execution", "enabled": "True", "started": "True"}
    return {**attributes, "resources_max": limits} if limits else attributes


def qstat(folder: Path, words: list[str]) -> int:
    config = json.loads((folder / "config.json").read_text())
    try:
        pairs, operands = getopt.gnu_getopt(words, "xHfBQtwu:F:")
    except getopt.GetoptError as error:
        raise Refusal(str(error), 2) from None
    options = dict(pairs)
    if "-x" in options and "-f" not in options:
        if is_away(folder):
            return no_server("qstat")
        # The table itself is left out.
        if not config["history"]:
            print("qstat: PBS is not configured to maintain job history ", file=sys.stderr)
        return 0
    if "-f" not in options or options.get("-F") != "json":
        known = "`qstat -x`, `qstat [-x] -f -F json [id ...]`, `qstat -Bf -F json` and `qstat -Qf -F json [queue ...]`"
        raise Refusal(f"the fake knows {known} only", 2)
    answer: dict = {"timestamp": int(time.time()), "pbs_version": VERSION, "pbs_server": SERVER}
    status = 0
    if is_away(folder):
        print(json.dumps(answer, indent=4))
        return no_server("qstat")
    past = "-x" in options or "-H" in options
    if "-B" in options:
        answer["Server"] = {SERVER: server_attributes(folder, config)}
    elif "-Q" in options:
        unknown = [queue for queue in operands if queue not in config["queues"]]
        if unknown:
            raise Refusal(f"Unknown queue {unknown[0]}", UNKNOWN_QUEUE)
        answer["Queue"] = {queue: queue_attributes(config, queue) for queue in operands or config["queues"]}
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
            (folder / f"jobs/{number}.delete").write_text(f"{os.environ.get('USER', 'root')}@{socket.gethostname()}")
    return status


def ask_server(command: str, folder: Path, words: list[str]) -> int:
    """`qhold`, `qrls`, and `qsig -s suspend|resume`: a request that the server reads."""
    try:
        pairs, operands = getopt.gnu_getopt(words, "h:s:")
    except getopt.GetoptError as error:
        raise Refusal(str(error), 2) from None
    request = {"qhold": "hold", "qrls": "release"}.get(command) or dict(pairs).get("-s", "")
    if request not in ("hold", "release", "suspend", "resume"):
        raise Refusal("the fake knows -s suspend and -s resume only", 2)
    known = job_numbers(folder)
    for number in [number_of(word, command) for word in operands]:
        if number is None or number not in known or read_job(folder, number)["attributes"]["job_state"] == "F":
            raise Refusal(f"Unknown Job Id {number}.{SERVER}", UNKNOWN_JOB)
        (folder / f"jobs/{number}.{request}").touch()
    return 0


def is_away(folder: Path) -> bool:
    """Whether the server cannot be reached. One that is silent lets a command wait until it is back."""
    away = folder / "away"
    while away.exists() and away.read_text() == "silent":
        time.sleep(0.05)
    return away.exists()


def no_server(command: str) -> int:
    print("Connection refused", file=sys.stderr)
    print(f"{command}: cannot connect to server {SERVER} (errno=15010)", file=sys.stderr)
    return NO_SERVER


COMMANDS = {"qsub": qsub, "qstat": qstat, "qdel": qdel}


def main(command: str, folder: Path, words: list[str]) -> int:
    try:
        # The JSON of qstat begins all the same.
        if command != "qstat" and is_away(folder):
            return no_server(command)
        if command in COMMANDS:
            return COMMANDS[command](folder, words)
        return ask_server(command, folder, words)
    except Refusal as refusal:
        print(f"{command}: {refusal}", file=sys.stderr)
        return refusal.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
