/*
 * Jobs: what other threads have the pager do between faults, as putting a cluster in place that
 * they decoded. Floor 5.
 */
#ifndef LR_JOBS_H
#define LR_JOBS_H

#include "pager.h"
#include "thread.h"

/* Have a job done, and wait for that: its code. */
void lr_pager_submit(struct lr_pager *pager, struct lr_job *job);
int lr_job_wait(struct lr_job *job);
/* Others than the pager may install from here on: it reads messages under the loader's lock. */
void lr_pager_share(struct lr_pager *pager);
/* The same as submitting a job, by the calling thread if it can be done now. Only after
 * lr_pager_share, and not by a thread that may be put aside for long: faults wait for it. */
void lr_pager_do(struct lr_pager *pager, struct lr_job *job);

/* For the pager's thread. Take what was submitted; do the oldest, and with LR_LATER or LR_MORE
 * leave it; wake the pager. */
void lr_pager_take_jobs(struct lr_pager *pager);
int lr_pager_do_job(struct lr_pager *pager);
void lr_pager_ring(struct lr_pager *pager);
/* True where there is something else than faults to do. */
bool lr_pager_has_jobs(struct lr_pager *pager);

#endif
