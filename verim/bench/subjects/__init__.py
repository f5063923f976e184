"""The ops that are measured, a file each: ours, the peers, the shapes, the least that has to be done."""

from verim.bench.subject import Subject
from verim.bench.subjects import attention, linear_cross_entropy, linear_recurrence, prefix_sum, selective_scan, wkv

SUBJECTS: dict[str, Subject] = {
    module.SUBJECT.name: module.SUBJECT
    for module in (prefix_sum, linear_recurrence, selective_scan, wkv, attention, linear_cross_entropy)
}
