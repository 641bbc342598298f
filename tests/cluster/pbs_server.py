"""The server of the fake PBS: `python -S -E pbs_server.py FOLDER` starts, watches and ends the jobs of a folder.

`jobs/N.json` is written by qsub, then by this process only; `jobs/N.delete` is qdel's request.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVER = "fakepbs"
PERIOD_S = 0.05


def write(path: Path, value: dict) -> None:
    """Readers see the old value or the new one."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def job_numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "jobs").glob("*.json"))


def read_job(folder: Path, number: int) -> dict:
    return json.loads((folder / f"jobs/{number}.json").read_text())


def clock(seconds: float | None = None) -> str:
    return time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(seconds))


def seconds_of(walltime: str) -> int:
    """[[hours:]minutes:]seconds."""
    total = 0
    for part in walltime.split(":"):
        total = 60 * total + int(part)
    return total


def in_session(session: int) -> list[int]:
    """The living processes of a session; zombies have ended."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name, in brackets, may hold anything.
                state, _, _, its_session = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(its_session) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


def belonging_to(folder: Path, job_id: str = "") -> list[int]:
    """The processes that inherited a job's environment, whatever session they are in."""
    marks = [f"\0FAKEPBS={folder}\0".encode()] + ([f"\0PBS_JOBID={job_id}\0".encode()] if job_id else [])
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = b"\0" + Path(entry.path, "environ").read_bytes()
                if all(mark in environment for mark in marks):
                    found.append(int(entry.name))
    return found


def kill(processes: list[int], signal_number: int) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal_number)


def kill_all(folder: Path, job_id: str = "") -> None:
    """Kill what belongs to a job, or to all, also what it starts meanwhile."""
    deadline = time.monotonic() + 5
    while (found := belonging_to(folder, job_id)) and time.monotonic() < deadline:
        kill(found, signal.SIGKILL)
        time.sleep(0.01)


def chunks_of(attributes: dict) -> list[dict[str, int]]:
    """`2:ncpus=2:mpiprocs=2+1:ncpus=1` as one dict per chunk."""
    chunks = []
    for part in str(attributes["Resource_List"]["select"]).split("+"):
        words = part.split(":")
        count = int(words.pop(0)) if words[0].isdigit() else 1
        pairs = [word.split("=") for word in words]
        resources = {key: int(value) for key, value in pairs if value.isdigit()}
        chunks += [{"ncpus": 1, "ngpus": 0, "mpiprocs": 1, **resources}] * count
    return chunks


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.free = dict.fromkeys(self.config["nodes"], self.config["ncpus"])
        self.running: dict[int, Running] = {}
        self.finished: set[int] = set()

    def step(self) -> None:
        for job in list(self.running.values()):
            if job.step():
                del self.running[job.number]
                self.finished.add(job.number)
                for node, cores in job.cores:
                    self.free[node] += cores
        for number in job_numbers(self.folder):
            if number not in self.running and number not in self.finished:
                self.consider(number)

    def consider(self, number: int) -> None:
        """Start a queued job if there is room."""
        job = read_job(self.folder, number)
        attributes = job["attributes"]
        if (self.folder / f"jobs/{number}.delete").exists():
            attributes["job_state"] = "F"
            self.finished.add(number)
            write(self.folder / f"jobs/{number}.json", job)
            return
        empty = dict.fromkeys(self.free, self.config["ncpus"])
        nodes = self.place(attributes, self.free)
        if nodes is None:
            verdict = "Not Running" if self.place(attributes, empty) else "Can Never Run"
            comment = f"{verdict}: Insufficient amount of resource: ncpus"
            if attributes.get("comment") != comment:
                attributes["comment"] = comment
                write(self.folder / f"jobs/{number}.json", job)
            return
        cores = [(node, chunk["ncpus"]) for node, chunk in zip(nodes, chunks_of(attributes), strict=True)]
        for node, count in cores:
            self.free[node] -= count
        self.running[number] = Running(self, number, job, cores)

    def place(self, attributes: dict, free: dict[str, int]) -> list[str] | None:
        """A node for each chunk, or None where there is no room."""
        free = dict(free)
        place = attributes["Resource_List"]["place"].split(":")
        if "excl" in place or "exclhost" in place:
            free = {node: cores for node, cores in free.items() if cores == self.config["ncpus"]}
        nodes: list[str] = []
        for chunk in chunks_of(attributes):
            fits = [node for node in free if free[node] >= chunk["ncpus"] and not chunk["ngpus"]]
            if "scatter" in place:
                fits = [node for node in fits if node not in nodes]
            if not fits:
                return None
            nodes.append(fits[0])
            free[fits[0]] -= chunk["ncpus"]
        return nodes


class Running:
    def __init__(self, server: Server, number: int, job: dict, cores: list[tuple[str, int]]) -> None:
        self.server, self.number, self.job, self.cores = server, number, job, cores
        self.folder = server.folder
        self.attributes = attributes = job["attributes"]
        self.id = f"{number}.{SERVER}"
        self.limit = seconds_of(attributes["Resource_List"]["walltime"])
        self.started = time.monotonic()
        self.ended_by = ""
        self.kill_at = 0.0

        chunks = chunks_of(attributes)
        hosts = [node for (node, _), chunk in zip(cores, chunks, strict=True) for _ in range(chunk["mpiprocs"])]
        node_file = self.folder / f"spool/{number}.nodes"
        node_file.write_text("".join(f"{host}\n" for host in hosts))
        temporary = self.folder / f"tmp/pbs.{self.id}"
        temporary.mkdir()
        home = self.folder / "home"
        environment = {
            "PATH": "/bin:/usr/bin",
            "HOME": str(home),
            "SHELL": "/bin/bash",
            "USER": os.environ.get("USER", "root"),
            "LOGNAME": os.environ.get("USER", "root"),
            "TMPDIR": str(temporary),
            **job["variables"],
            "NCPUS": str(chunks[0]["ncpus"]),
            "OMP_NUM_THREADS": str(chunks[0]["ncpus"]),
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_JOBID": self.id,
            "PBS_JOBNAME": attributes["Job_Name"],
            "PBS_NODEFILE": str(node_file),
            "PBS_NODENUM": "0",
            "PBS_QUEUE": attributes["queue"],
            "HYDRA_LAUNCHER": "ssh",
            "HYDRA_LAUNCHER_EXEC": str(self.folder / "bin/fake_ssh"),
            "FAKEPBS": str(self.folder),
        }
        command = ["bash", "-l", str(self.folder / f"jobs/{number}.script")]
        if server.config["namespaces"]:
            node = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
            prefix = ["unshare", "--uts", "--mount", "sh", "-c", node, str(self.folder / "hosts"), cores[0][0]]
            command = [*prefix, *command]
        # `-j oe` leaves no file of errors.
        self.errors = "out" if attributes["Join_Path"] == "oe" else "err"
        with self.spool("out").open("ab") as out, self.spool(self.errors).open("ab") as err:
            self.shell = subprocess.Popen(
                command,
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        vnodes = "+".join(f"({node}:ncpus={count})" for node, count in cores)
        attributes.update(
            job_state="R",
            exec_host="+".join(f"{node}/0*{count}" if count > 1 else f"{node}/0" for node, count in cores),
            exec_vnode=vnodes,
            stime=clock(),
            mtime=clock(),
            session_id=self.shell.pid,
            run_count=1,
            comment=f"Job run at {time.strftime('%a %b %d at %H:%M')} on {vnodes}",
        )
        write(self.folder / f"jobs/{number}.json", job)

    def spool(self, kind: str) -> Path:
        return self.folder / f"spool/{self.number}.{kind}"

    def step(self) -> bool:
        """Look after the job; True when it is over."""
        now = time.monotonic()
        status = self.shell.poll()
        if not self.ended_by:
            if status is not None:
                self.finish(status)
                return True
            if (self.folder / f"jobs/{self.number}.delete").exists():
                self.ended_by = "qdel"
            elif now - self.started > self.limit:
                self.ended_by = "walltime"
                message = f"=>> PBS: job killed: walltime {now - self.started:.0f} exceeded limit {self.limit}\n"
                with self.spool(self.errors).open("a") as err:
                    err.write(message)
            if self.ended_by:
                self.kill_at = now + self.server.config["kill_delay"]
                kill(in_session(self.shell.pid), signal.SIGTERM)
            return False
        if in_session(self.shell.pid) and now < self.kill_at:
            return False
        kill(in_session(self.shell.pid), signal.SIGKILL)
        self.finish(self.shell.wait())
        return True

    def finish(self, status: int) -> None:
        kill_all(self.folder, self.id)
        shutil.rmtree(self.folder / f"tmp/pbs.{self.id}", ignore_errors=True)
        self.spool("nodes").unlink()
        for kind, name in (("out", "Output_Path"), ("err", "Error_Path")):
            if kind == "err" and self.errors == "out":
                continue
            target = Path(self.attributes[name].partition(":")[2])
            if target.is_dir():
                target /= f"{self.id}.{'OU' if kind == 'out' else 'ER'}"
            try:
                shutil.move(self.spool(kind), target)
            except OSError as error:  # as the real one: the output is lost to the user, the job is not
                print(f"{self.id}: {target}: {error}", flush=True)
        used = int(time.monotonic() - self.started)
        self.attributes.update(
            job_state="F",
            Exit_status=-29 if self.ended_by == "walltime" else status if status >= 0 else 256 - status,
            resources_used={"walltime": f"{used // 3600:02}:{used // 60 % 60:02}:{used % 60:02}"},
            mtime=clock(),
            comment=self.attributes["comment"] + (" and terminated" if self.ended_by else " and finished"),
        )
        write(self.folder / f"jobs/{self.number}.json", self.job)


def main(folder: Path) -> None:
    server = Server(folder)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    (folder / "ready").touch()
    while not stopped:
        server.step()
        time.sleep(PERIOD_S)
    for job in server.running.values():
        kill(in_session(job.shell.pid), signal.SIGKILL)
        job.shell.wait()
    kill_all(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
