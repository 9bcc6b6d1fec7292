"""How far the job at hand is, and what its user asked for meanwhile.

State                   A1111 12    Forge 16    reForge 14
State.begin             A1111 110   Forge 118   reForge 112
State.end               A1111 129   Forge 137   reForge 131
State.nextjob           A1111 87    Forge 95    reForge 89
State.interrupt         A1111 79    Forge 87    reForge 81
State.stop_generating   A1111 83    Forge 91    reForge 85
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
