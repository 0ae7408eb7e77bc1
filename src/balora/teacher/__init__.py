"""Teacher: the pre-trained model inside the adapted one, and caches of its outputs."""

from balora.teacher.pretrained import PretrainedTeacher

__all__ = ["PretrainedTeacher"]
