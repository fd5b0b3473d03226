#include "jobs.h"

#include <errno.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "install.h"

/* How often to give way to threads that install pages for themselves: as long as waking takes. */
#define GIVE_WAY_MAX 100

/* Whoever waits for a page goes before the next job, and would not if the lock were taken again
 * before he has woken. */
static void give_way(struct lr_pager *pager)
{
	for (int i = 0; i < GIVE_WAY_MAX && atomic_load(&pager->wanting) > 0; i++)
		sched_yield();
}

/* LR_LATER and LR_MORE: it is not done yet. */
static int perform(struct lr_loader *loader, struct lr_job *job)
{
	int code = job->code, fenced = LR_OK;

	pthread_mutex_lock(&loader->busy);
	loader->clusters_decoded += job->clusters_decoded;
	loader->payload_bytes_read += job->payload_bytes_read;
	job->clusters_decoded = job->payload_bytes_read = 0;
	if (lr_range_state(job->range) == LR_RANGE_PLAIN)
		code = LR_OK; /* all of it was brought */
	else if (lr_range_state(job->range) != LR_RANGE_ACTIVE)
		code = lr_problem_set(&job->problem, LR_ERR_CLOSED, 0, job->cluster, LR_NOWHERE);
	else if (job->act)
		code = job->act(loader, job);
	else if (code == LR_OK)
		code = lr_loader_install(loader, job->range, &job->decoded, job->clusters,
					 &job->problem);
	else if (code != LR_ERR_NOMEM && job->problem.os_error != EBADF)
		/* (The program may have closed the image's descriptor: the pager has its own.) */
		fenced = lr_loader_fence(loader, job->range, job->cluster,
					 job->decoded.info ? &job->decoded : NULL, &job->problem);
	pthread_mutex_unlock(&loader->busy);
	return fenced < 0 ? fenced : code;
}

static void note_end(struct lr_job *job, int code)
{
	job->code = code;
	if (code < 0)
		job->problem.code = code;
	/* The job is its maker's from here on. */
	lr_flag_raise(&job->is_done);
}

int lr_pager_do_job(struct lr_pager *pager)
{
	struct lr_job *job = pager->jobs;
	int code;

	give_way(pager);
	code = perform(&pager->loader, job);
	if (code != LR_LATER && code != LR_MORE) {
		pager->jobs = job->next;
		note_end(job, code);
	}
	return code;
}

void lr_pager_share(struct lr_pager *pager)
{
	atomic_store(&pager->target->is_shared, true);
	/* What it is reading now it reads as if it were alone. */
	lr_target_sync(pager->target);
}

void lr_pager_do(struct lr_pager *pager, struct lr_job *job)
{
	int code = perform(&pager->loader, job);

	if (code == LR_LATER || code == LR_MORE)
		lr_pager_submit(pager, job);
	else
		note_end(job, code);
}

void lr_pager_take_jobs(struct lr_pager *pager)
{
	/* The inbox has the newest first. */
	/* Acquire: partner of the release in lr_pager_submit. */
	struct lr_job *job = atomic_exchange_explicit(&pager->inbox, NULL, memory_order_acquire);
	struct lr_job *ordered = NULL, **end = &pager->jobs;

	while (job) {
		struct lr_job *next = job->next;

		job->next = ordered;
		ordered = job;
		job = next;
	}
	while (*end)
		end = &(*end)->next;
	*end = ordered;
}

bool lr_pager_has_jobs(struct lr_pager *pager)
{
	return pager->jobs || atomic_load_explicit(&pager->inbox, memory_order_relaxed)
	       || atomic_load_explicit(&pager->is_stopping, memory_order_relaxed);
}

void lr_pager_ring(struct lr_pager *pager)
{
	uint64_t one = 1;

	while (write(pager->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		continue;
}

void lr_pager_submit(struct lr_pager *pager, struct lr_job *job)
{
	struct lr_job *newest = atomic_load_explicit(&pager->inbox, memory_order_relaxed);

	do
		job->next = newest;
	while (!atomic_compare_exchange_weak_explicit(&pager->inbox, &newest, job,
						      memory_order_release, memory_order_relaxed));
	/* Where there was one already, it rang. */
	if (!newest)
		lr_pager_ring(pager);
}

int lr_job_wait(struct lr_job *job)
{
	lr_flag_wait(&job->is_done);
	return job->code;
}

/* True where it comes to a job within half a second. */
static bool is_at_work(struct lr_pager *pager, struct lr_job *job)
{
	struct timespec pause = {.tv_nsec = 1000000};

	lr_pager_submit(pager, job);
	/* Acquire: partner of the release in lr_flag_raise. */
	for (int i = 0; i < 500 && !atomic_load_explicit(&job->is_done, memory_order_acquire); i++)
		nanosleep(&pause, NULL);
	return atomic_load_explicit(&job->is_done, memory_order_acquire);
}

void lr_pager_unblock(struct lr_pager *pager)
{
	struct lr_job job = {.range = pager->target->ranges};
	struct lr_uffd *uffd = &pager->target->uffd;

	if (uffd->reads_no_wait || !pager->is_running || is_at_work(pager, &job))
		return;
	/* The only place where it can be. */
	pthread_cancel(pager->thread);
	pthread_join(pager->thread, NULL);
	close(uffd->fd);
	uffd->fd = -1;
	lr_pager_restart(pager);
	lr_job_wait(&job);
}
