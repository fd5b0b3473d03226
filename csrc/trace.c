#include "trace.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "stats.h"

int lr_trace_open(struct lr_trace *trace, uint32_t capacity)
{
	void *records;

	memset(trace, 0, sizeof(*trace));
	trace->event_fd = -1;
	if (capacity == 0)
		return LR_OK;
	if (capacity & (capacity - 1))
		return LR_ERR_ARGUMENT;
	records = mmap(NULL, (size_t)capacity * sizeof(struct lr_trace_record),
		       PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (records == MAP_FAILED)
		return LR_ERR_NOMEM;
	trace->records = records;
	trace->mask = capacity - 1;
	trace->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (trace->event_fd < 0) {
		lr_trace_close(trace);
		return LR_ERR_LIMIT;
	}
	return LR_OK;
}

void lr_trace_close(struct lr_trace *trace)
{
	if (!trace->records)
		return;
	munmap(trace->records, ((size_t)trace->mask + 1) * sizeof(struct lr_trace_record));
	trace->records = NULL;
	if (trace->event_fd >= 0)
		close(trace->event_fd);
}

void lr_trace_put(struct lr_trace *trace, const struct lr_trace_record *record)
{
	uint64_t one = 1;
	uint64_t head, tail;

	if (!trace->records)
		return;
	head = atomic_load_explicit(&trace->head, memory_order_relaxed);
	/* Acquire: partner of the release in lr_trace_take; the slot has been read before it is
	 * written again. */
	tail = atomic_load_explicit(&trace->tail, memory_order_acquire);
	if (head - tail > trace->mask) {
		atomic_fetch_add_explicit(&trace->lost, 1, memory_order_relaxed);
		return;
	}
	trace->records[head & trace->mask] = *record;
	/* Release: partner of the acquire in lr_trace_take; the record is whole before it is
	 * counted. */
	atomic_store_explicit(&trace->head, head + 1, memory_order_release);
	if (write(trace->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: a reader that comes now does not wait */
}

/* Wait for a record, at most until the deadline: the head, which is the tail where none came. */
static uint64_t wait_for_record(struct lr_trace *trace, uint64_t tail, int64_t timeout_ns)
{
	struct pollfd wait = {.fd = trace->event_fd, .events = POLLIN};
	uint64_t begin_ns = lr_clock_ns(), passed_ns = 0;

	for (;;) {
		uint64_t left_ns = timeout_ns < 0 ? 1000000000 : (uint64_t)timeout_ns - passed_ns;
		struct timespec timeout = {.tv_sec = (time_t)(left_ns / 1000000000),
					   .tv_nsec = (long)(left_ns % 1000000000)};
		uint64_t count, head;

		/* Forget what was counted so far, before looking: records that were taken without
		 * waiting must not end this wait, and one that comes after the look will. */
		if (read(trace->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return tail;
		head = atomic_load_explicit(&trace->head, memory_order_acquire);
		if (head != tail || (timeout_ns >= 0 && passed_ns >= (uint64_t)timeout_ns))
			return head;
		if (ppoll(&wait, 1, &timeout, NULL) < 0)
			return head; /* a signal: the caller may want to see to it */
		passed_ns = lr_clock_ns() - begin_ns;
		if (timeout_ns >= 0 && passed_ns > (uint64_t)timeout_ns)
			passed_ns = (uint64_t)timeout_ns;
	}
}

uint32_t lr_trace_take(struct lr_trace *trace, struct lr_trace_record *ret_records, uint32_t room,
		       int64_t timeout_ns)
{
	uint64_t head, tail, count;

	if (!trace->records)
		return 0;
	tail = atomic_load_explicit(&trace->tail, memory_order_relaxed);
	head = atomic_load_explicit(&trace->head, memory_order_acquire);
	if (head == tail)
		head = wait_for_record(trace, tail, timeout_ns);
	count = head - tail < room ? head - tail : room;
	for (uint64_t i = 0; i < count; i++)
		ret_records[i] = trace->records[(tail + i) & trace->mask];
	atomic_store_explicit(&trace->tail, tail + count, memory_order_release);
	return (uint32_t)count;
}
