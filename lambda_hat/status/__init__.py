"""How a study stands, from what its store says: the driver's record and log, the ranks' events, and the folders.

Nothing here changes the store, asks a scheduler, or needs the driver to be alive. No run's result is opened to count
it: events, and the names in its folder, say whether it is there.
"""

from lambda_hat.status.follower import StudyFollower
from lambda_hat.status.model import Driver, Failure, JobState, Running, StudyStatus
from lambda_hat.status.studies import Studies, newest_record

__all__ = ["Driver", "Failure", "JobState", "Running", "Studies", "StudyFollower", "StudyStatus", "newest_record"]
