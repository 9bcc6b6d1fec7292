"""How far the job at hand is, and what its user asked for meanwhile.

State                     A1111    Forge    reForge
State.begin               A1111    Forge    reForge
State.end                 A1111    Forge    reForge
State.nextjob             A1111    Forge    reForge
State.interrupt           A1111    Forge    reForge
State.stop_generating     A1111    Forge    reForge
"""
import datetime


class State:
    skipped = interrupted = stopping_generation = False
    job, job_no, job_count, job_timestamp = "", 0, 0, "0"
    sampling_step = sampling_steps = 0
    textinfo = None

    def begin(self, job="(unknown)"):
        self.skipped = self.interrupted = self.stopping_generation = False
        self.job, self.job_no, self.job_count = job, 0, -1
        self.job_timestamp = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
        self.sampling_step, self.textinfo = 0, None

    def end(self):
        self.job, self.job_count = "", 0

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def interrupt(self):
        self.interrupted = True

    def stop_generating(self):
        self.stopping_generation = True
