"""The pre-trained model inside the adapted one, and what is cached of its outputs."""

from balora.teacher.pretrained import PretrainedTeacher

__all__ = ["PretrainedTeacher"]
