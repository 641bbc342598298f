"""How a study stands, told from its store: the driver's record and log, the ranks' events, and the folders of runs.

Nothing here changes the store, asks a scheduler, or needs a driver that is alive. Counting opens no result: events, and
the names in a run's folder, say whether it has ended.
"""

from lambda_hat.status.follower import StudyFollower
from lambda_hat.status.recent_studies import Studies, newest_record
from lambda_hat.status.study_state import Driver, Failure, JobState, Running, StudyStatus

__all__ = ["Driver", "Failure", "JobState", "Running", "Studies", "StudyFollower", "StudyStatus", "newest_record"]
