/*
 * The classic demonstration of userfaultfd as a function, to measure against: one thread touches
 * pages one after another, another polls, and answers each fault with a COPY of one ready page.
 * There is no less that a program can do for a fault. The memory is this function's own, and gone
 * when it returns.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stats.h"
#include "uffd.h"

struct hello {
	const struct lr_hello_options *options;
	struct lr_uffd uffd;
	uint8_t *memory; /* options->pages, and one that is touched to end the answering thread */
	uint64_t memory_bytes;
	uint8_t *ready;
	uint64_t page_size;
	uint32_t *ret_latency_ns;
	int os_error; /* of the answering thread; read after joining it */
};

/* Whoever waits goes on, and reads zeros: nothing was promised of this memory. */
static void give_up(struct hello *hello, int os_error)
{
	hello->os_error = os_error;
	lr_uffd_unregister(&hello->uffd, (uint64_t)(uintptr_t)hello->memory, hello->memory_bytes);
}

static int64_t answer_one(struct hello *hello, uint64_t address)
{
	uint64_t page = address & ~(hello->page_size - 1);
	int64_t done;

	do
		done = hello->options->zeropage
			       ? lr_uffd_zeropage(&hello->uffd, page, hello->page_size)
			       : lr_uffd_copy(&hello->uffd, page, hello->ready, hello->page_size);
	while (done == -EAGAIN);
	if (done == -EEXIST) {
		lr_uffd_wake(&hello->uffd, page, hello->page_size);
		return 0;
	}
	return done;
}

static void *answer(void *argument)
{
	struct hello *hello = argument;
	struct pollfd poll_fd = {.fd = hello->uffd.fd, .events = POLLIN};
	uint64_t last = (uint64_t)(uintptr_t)hello->memory + hello->memory_bytes - hello->page_size;

	for (;;) {
		struct lr_uffd_message message = {0};
		int64_t done = poll(&poll_fd, 1, -1) < 0 ? -errno : 0;

		if (done == 0)
			done = lr_uffd_read(&hello->uffd, &message, 1);
		if (done == 1)
			done = answer_one(hello, message.start);
		else if (done == 0)
			continue;
		if (done == -EINTR)
			continue;
		if (done < 0)
			give_up(hello, (int)-done);
		/* Not by a flag: it could be seen before the last touch, which then waits for good.
		 */
		if (done < 0 || message.start >= last)
			return NULL;
	}
}

static void *touch(void *argument)
{
	struct hello *hello = argument;
	volatile uint8_t *page = hello->memory;
	uint8_t is_write = hello->options->is_write != 0;

	for (uint64_t i = 0; i < hello->options->pages; i++, page += hello->page_size) {
		uint64_t begin_ns = lr_clock_ns(), took_ns;

		if (is_write)
			*page = 1;
		else
			(void)*page;
		took_ns = lr_clock_ns() - begin_ns;
		hello->ret_latency_ns[i] = took_ns < UINT32_MAX ? (uint32_t)took_ns : UINT32_MAX;
	}
	return NULL;
}

/* All of it is empty and registered, and nothing but an answer makes a page appear. */
static int prepare(struct hello *hello, struct lr_problem *ret_problem)
{
	int code = lr_uffd_open(&hello->uffd, hello->options->privilege, 0, ret_problem);

	if (code < 0)
		return code;
	hello->memory = mmap(NULL, hello->memory_bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (hello->memory == MAP_FAILED)
		return lr_problem_from_errno(ret_problem, errno);
	madvise(hello->memory, hello->memory_bytes, MADV_NOHUGEPAGE);
	if (posix_memalign((void **)&hello->ready, hello->page_size, hello->page_size) != 0)
		return lr_problem_set(ret_problem, LR_ERR_NOMEM, ENOMEM, LR_NOWHERE, LR_NOWHERE);
	memset(hello->ready, 'A', hello->page_size);
	memset(hello->ret_latency_ns, 0, hello->options->pages * sizeof(uint32_t));
	code = lr_uffd_register(&hello->uffd, (uint64_t)(uintptr_t)hello->memory,
				hello->memory_bytes, ret_problem);
	if (code < 0)
		return code;
	/* Where the process locks all that it maps, it is there already. */
	munlock(hello->memory, hello->memory_bytes);
	if (madvise(hello->memory, hello->memory_bytes, MADV_DONTNEED) < 0)
		return lr_problem_from_errno(ret_problem, errno);
	return LR_OK;
}

/* Both threads are new ones: how the caller's own is bound to cores does not change. */
static int run(struct hello *hello, pthread_attr_t *attributes, struct lr_problem *ret_problem)
{
	pthread_t answering, touching;
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&answering, attributes, answer, hello);
	if (error == 0) {
		error = pthread_create(&touching, attributes, touch, hello);
		if (error == 0)
			pthread_join(touching, NULL);
		(void)*(volatile uint8_t *)(hello->memory + hello->memory_bytes - hello->page_size);
		pthread_join(answering, NULL);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error == 0)
		error = hello->os_error;
	return error == 0 ? LR_OK : lr_problem_from_errno(ret_problem, error);
}

int lr_hello(const struct lr_hello_options *options, uint32_t *ret_latency_ns,
	     struct lr_problem *ret_problem)
{
	struct hello hello = {
		.options = options,
		.uffd = {.fd = -1, .device = -1},
		.memory = MAP_FAILED,
		.page_size = (uint64_t)sysconf(_SC_PAGESIZE),
		.ret_latency_ns = ret_latency_ns,
	};
	pthread_attr_t attributes;
	cpu_set_t one;
	int code;

	if (options->pages == 0 || options->pages >= UINT64_MAX / 2 / hello.page_size)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	hello.memory_bytes = (options->pages + 1) * hello.page_size;
	CPU_ZERO(&one);
	CPU_SET((size_t)sched_getcpu() % CPU_SETSIZE, &one);
	pthread_attr_init(&attributes);
	if (options->one_core)
		pthread_attr_setaffinity_np(&attributes, sizeof(one), &one);
	code = prepare(&hello, ret_problem);
	if (code == LR_OK)
		code = run(&hello, &attributes, ret_problem);
	pthread_attr_destroy(&attributes);
	if (hello.memory != MAP_FAILED)
		munmap(hello.memory, hello.memory_bytes);
	free(hello.ready);
	lr_uffd_close(&hello.uffd);
	return code;
}
