/*
 * The trace of served faults: a ring with one writer (the pager) and one reader, neither of which
 * waits for the other. Floor 1. When it is full the newest record is dropped and counted.
 */
#ifndef LR_TRACE_H
#define LR_TRACE_H

#include <stdatomic.h>

#include "error.h"

struct lr_trace {
	struct lr_trace_record *records;
	uint32_t mask;         /* capacity - 1; capacity is a power of two */
	int event_fd;          /* counts records, so that a reader can wait */
	_Atomic uint64_t head; /* written by the writer */
	_Atomic uint64_t tail; /* written by the reader */
	_Atomic uint64_t lost;
};

/* capacity 0: no trace; putting is then a no-op. */
int lr_trace_open(struct lr_trace *trace, uint32_t capacity);
void lr_trace_close(struct lr_trace *trace);
void lr_trace_put(struct lr_trace *trace, const struct lr_trace_record *record);
uint32_t lr_trace_take(struct lr_trace *trace, struct lr_trace_record *ret_records, uint32_t room,
		       int64_t timeout_ns);

#endif
