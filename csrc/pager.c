#include "pager.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STACK_BYTES (256u << 10)

static void trace_fault(struct lr_pager *pager, const struct lr_range *range,
			const struct lr_uffd_fault *fault, const struct lr_outcome *outcome,
			uint64_t read_ns)
{
	uint64_t page = fault->address & ~(uint64_t)(pager->target->host_page - 1);
	uint64_t latency_ns = outcome->touched_ns - read_ns;
	struct lr_trace_record record = {
		.time_ns = read_ns,
		.address = fault->address,
		.offset = page - range->start,
		.bytes = outcome->bytes,
		.latency_ns = (uint32_t)(latency_ns < UINT32_MAX ? latency_ns : UINT32_MAX),
		.thread = fault->thread,
		.region = range->number,
		.action = (uint16_t)outcome->action,
		.is_write = fault->is_write,
	};

	lr_trace_put(&pager->trace, &record);
}

static void serve(struct lr_pager *pager, const struct lr_uffd_fault *fault, uint64_t read_ns)
{
	struct lr_target *target = pager->target;
	uint64_t page = fault->address & ~(uint64_t)(target->host_page - 1);
	struct lr_range *range = lr_target_find(target, page);
	struct lr_outcome outcome;

	if (!range) {
		/* Detached since: its memory is gone, and whoever touched it must look again. */
		lr_uffd_wake(&target->uffd, page, target->host_page);
		return;
	}
	pthread_mutex_lock(&pager->loader.busy);
	/* Suspended: the owner unmaps the range or resumes it, and wakes all who wait in either
	 * case. */
	if (lr_range_state(range) == LR_RANGE_ACTIVE) {
		pager->loader.faults++;
		lr_loader_fault(&pager->loader, range, page - range->start, &outcome);
		lr_histogram_add(&pager->loader.service, outcome.touched_ns - read_ns);
		trace_fault(pager, range, fault, &outcome, read_ns);
	}
	pthread_mutex_unlock(&pager->loader.busy);
}

static void *run(void *argument)
{
	struct lr_pager *pager = argument;
	struct lr_uffd_fault faults[LR_UFFD_FAULTS_MAX];
	struct pollfd waits[2] = {
		{.fd = pager->target->uffd.fd, .events = POLLIN},
		{.fd = pager->stop_fd, .events = POLLIN},
	};

	for (;;) {
		int count = lr_uffd_read(&pager->target->uffd, faults, LR_UFFD_FAULTS_MAX);
		uint64_t read_ns = count > 0 ? lr_clock_ns() : 0;

		for (int i = 0; i < count; i++)
			serve(pager, &faults[i], read_ns);
		/* Looked at even while faults keep coming: a thread that touches a region which was
		 * detached but left mapped asks again and again. Relaxed: nothing else is read by
		 * it, and the eventfd brings it here. */
		if (atomic_load_explicit(&pager->is_stopping, memory_order_relaxed))
			return NULL;
		if (count > 0)
			continue;
		poll(waits, 2, -1);
	}
}

static int start_thread(struct lr_pager *pager)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (pthread_attr_init(&attributes))
		return LR_ERR_NOMEM;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&pager->thread, &attributes, run, pager);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		return error == ENOMEM ? LR_ERR_NOMEM : LR_ERR_LIMIT;
	pthread_setname_np(pager->thread, "lazyrestore");
	pager->is_running = true;
	return LR_OK;
}

int lr_pager_start(struct lr_pager *pager, struct lr_target *target, uint32_t trace_records,
		   struct lr_problem *ret_problem)
{
	int code;

	memset(pager, 0, sizeof(*pager));
	pager->target = target;
	pager->trace.event_fd = -1;
	pager->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pager->stop_fd < 0)
		return lr_problem_from_errno(ret_problem, errno);
	code = lr_trace_open(&pager->trace, trace_records);
	if (code == LR_OK)
		code = lr_loader_open(&pager->loader, target, true);
	if (code == LR_OK)
		code = start_thread(pager);
	if (code < 0) {
		lr_pager_stop(pager);
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	return LR_OK;
}

void lr_pager_stop(struct lr_pager *pager)
{
	uint64_t one = 1;

	if (pager->is_running) {
		atomic_store_explicit(&pager->is_stopping, true, memory_order_relaxed);
		while (write(pager->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
			continue;
		pthread_join(pager->thread, NULL);
		pager->is_running = false;
	}
	if (pager->stop_fd >= 0)
		close(pager->stop_fd);
	pager->stop_fd = -1;
	lr_loader_close(&pager->loader);
	lr_trace_close(&pager->trace);
}
