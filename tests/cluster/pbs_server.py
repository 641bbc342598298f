"""The server of the fake PBS: `python -S -E pbs_server.py FOLDER` starts, watches and ends the jobs of a folder.

`jobs/N.json` is written by qsub, then by this process only; `jobs/N.delete` is qdel's request, and `hold`, `release`,
`suspend` and `resume` are those of qhold, qrls and qsig.
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
                if not job.suspended:
                    self.take(job.cores, -1)
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
        before = dict(attributes)
        if attributes["job_state"] in "TW" and time.time() > job["begin"]:
            attributes["job_state"] = "Q"
        if self.asked(number, "hold"):
            user = os.environ.get("USER", "root")
            attributes |= {"job_state": "H", "Hold_Types": "u", "comment": f"Job held by {user} on {clock()}"}
        if self.asked(number, "release"):
            attributes |= {"job_state": "Q", "Hold_Types": "n"}
        nodes = self.place(attributes, self.free) if attributes["job_state"] == "Q" else None
        if nodes is None:
            if attributes["job_state"] == "Q":
                attributes["comment"] = self.why_not(attributes)
            if attributes != before:
                write(self.folder / f"jobs/{number}.json", job)
            return
        cores = [(node, chunk["ncpus"]) for node, chunk in zip(nodes, chunks_of(attributes), strict=True)]
        self.take(cores)
        self.running[number] = Running(self, number, job, cores)

    def take(self, cores: list[tuple[str, int]], sign: int = 1) -> bool:
        """Give cores to a job, or with -1 take them back. Returns whether there were enough."""
        if sign > 0 and any(self.free[node] < count for node, count in cores):
            return False
        for node, count in cores:
            self.free[node] -= sign * count
        return True

    def asked(self, number: int, request: str) -> bool:
        """Whether a command asked this of a job; it is told once."""
        path = self.folder / f"jobs/{number}.{request}"
        found = path.exists()
        path.unlink(missing_ok=True)
        return found

    def why_not(self, attributes: dict) -> str:
        """The scheduler's comment on a job that it cannot start now."""
        wanted = sum(chunk["ncpus"] for chunk in chunks_of(attributes))
        total, free = self.config["ncpus"] * len(self.free), sum(self.free.values())
        whole_nodes = attributes["Resource_List"]["place"] != "free"
        if self.place(attributes, dict.fromkeys(self.free, self.config["ncpus"])) is None:
            if wanted <= total and whole_nodes:
                return "Can Never Run: Not enough total nodes available"
            return f"Can Never Run: Insufficient amount of resource: ncpus (R: {wanted} A: {total} T: {total})"
        if whole_nodes:
            return "Not Running: Not enough free nodes available"
        return f"Not Running: Insufficient amount of resource: ncpus (R: {wanted} A: {free} T: {total})"

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
        self.suspended: float | None = None
        self.wants_on = False
        self.exit_at: float | None = None
        self.umask = int(str(attributes.get("umask", "77")), 8)

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
                umask=self.umask,
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
        if self.exit_at is not None:
            if now < self.exit_at:
                return False
            self.finish(self.shell.wait())
            return True
        if not self.ended_by:
            if status is not None:
                return self.over()
            if (self.folder / f"jobs/{self.number}.delete").exists():
                self.ended_by = f"terminated by {(self.folder / f'jobs/{self.number}.delete').read_text()}"
                self.resume()
            elif self.suspended is not None:
                if self.wants_on and self.server.take(self.cores):
                    self.resume()
                self.wants_on |= self.server.asked(self.number, "resume")
            elif self.server.asked(self.number, "suspend"):
                kill(belonging_to(self.folder, self.id), signal.SIGSTOP)
                self.suspended, self.wants_on = now, False
                self.server.take(self.cores, -1)
                self.show("S")
            elif now - self.started > self.limit:
                self.ended_by = "exceeded resource walltime"
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
        return self.over()

    def over(self) -> bool:
        """Its processes have ended: it exits for a while, and keeps its nodes. Returns whether it is over."""
        seconds = self.server.config["exiting"]
        if seconds:
            self.exit_at = time.monotonic() + seconds
            self.show("E")
            return False
        self.finish(self.shell.wait())
        return True

    def resume(self) -> None:
        if self.suspended is not None:
            self.limit += time.monotonic() - self.suspended
            self.suspended = None
            kill(belonging_to(self.folder, self.id), signal.SIGCONT)
            self.show("R")

    def show(self, state: str) -> None:
        self.attributes.update(job_state=state, mtime=clock())
        write(self.folder / f"jobs/{self.number}.json", self.job)

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
                target.chmod(0o666 & ~self.umask)
            except OSError as error:  # as the real one: the output is lost to the user, the job is not
                print(f"{self.id}: {target}: {error}", flush=True)
        used = int(time.monotonic() - self.started)
        self.attributes.update(
            job_state="F",
            Exit_status=-29 if "walltime" in self.ended_by else status if status >= 0 else 256 - status,
            resources_used={"walltime": f"{used // 3600:02}:{used // 60 % 60:02}:{used % 60:02}"},
            mtime=clock(),
            comment=f"{self.attributes['comment']} and {self.ended_by or 'finished'}",
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
