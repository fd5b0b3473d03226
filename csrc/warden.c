/*
 * The maker's side of the warden: it is started, told what there is, started again where it was
 * killed, and ended.
 */
#include "warden.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"

#define STACK_BYTES (64u << 10)
#define ASK_BYTES   (1 << 20)

struct lr_warden {
	struct lr_warden_page *page;
	int page_fd;
	int ends[2]; /* the warden's, the keeper's */
	size_t room_bytes;
	size_t host_page;
	struct one {
		uint8_t *room; /* guard, stack, struct lr_warden_self, guard */
		pid_t pid;
		int pidfd;
	} ones[2]; /* who is awake, and who sleeps beside that one */
	int last;  /* pidfd of one that ended: the other may be about to look at it */
};

static size_t round_up(size_t bytes, size_t page)
{
	return (bytes + page - 1) / page * page;
}

/* Where nothing that lies beside it is one mapping with it. */
static int make_room(const lr_warden *warden, struct one *one)
{
	size_t page = warden->host_page;
	size_t inner = warden->room_bytes - 2 * page;

	one->room = mmap(NULL, warden->room_bytes, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (one->room == MAP_FAILED) {
		one->room = NULL;
		return errno;
	}
	return mprotect(one->room + page, inner, PROT_READ | PROT_WRITE) < 0 ? errno : 0;
}

static int make_page(lr_warden *warden, bool kills)
{
	struct lr_warden_page *page;

	warden->page_fd = (int)syscall(SYS_memfd_create, "lazyrestore-warden", MFD_CLOEXEC);
	if (warden->page_fd < 0 || ftruncate(warden->page_fd, sizeof(*page)) < 0)
		return errno;
	page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, warden->page_fd, 0);
	if (page == MAP_FAILED)
		return errno;
	warden->page = page;
	memcpy(page->magic, "LRWARD", sizeof("LRWARD"));
	page->version = LR_WARDEN_VERSION;
	page->kills = kills;
	page->keeper = page->watched = -1;
	page->socket = warden->ends[0];
	page->maker = page->bell = -1;
	page->maker = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (page->maker < 0)
		return errno;
	page->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return page->bell < 0 ? errno : 0;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void free_warden(lr_warden *warden)
{
	if (warden->page) {
		close_if_open(warden->page->maker);
		close_if_open(warden->page->bell);
		munmap(warden->page, sizeof(*warden->page));
	}
	for (int i = 0; i < 2; i++) {
		if (warden->ones[i].room)
			munmap(warden->ones[i].room, warden->room_bytes);
		close_if_open(warden->ones[i].pidfd);
	}
	close_if_open(warden->page_fd);
	close_if_open(warden->ends[0]);
	close_if_open(warden->ends[1]);
	close_if_open(warden->last);
	free(warden);
}

int lr_warden_open(uint32_t kills, lr_warden **ret_warden, struct lr_problem *ret_problem)
{
	int bytes = ASK_BYTES, error = 0;
	lr_warden *warden;

	if (!ret_warden)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	warden = calloc(1, sizeof(*warden));
	if (!warden)
		return lr_problem_set(ret_problem, LR_ERR_NOMEM, 0, LR_NOWHERE, LR_NOWHERE);
	warden->page_fd = warden->last = -1;
	warden->ones[0].pidfd = warden->ones[1].pidfd = -1;
	warden->host_page = (size_t)sysconf(_SC_PAGESIZE);
	warden->room_bytes = STACK_BYTES + 2 * warden->host_page
			     + round_up(sizeof(struct lr_warden_self), warden->host_page);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, warden->ends) < 0) {
		warden->ends[0] = warden->ends[1] = -1;
		error = errno;
	}
	if (!error) {
		/* A list of all is one packet. */
		setsockopt(warden->ends[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
		error = make_page(warden, kills);
	}
	for (int i = 0; i < 2 && !error; i++)
		error = make_room(warden, &warden->ones[i]);
	if (error) {
		free_warden(warden);
		return lr_problem_from_errno(ret_problem, error);
	}
	*ret_warden = warden;
	return LR_OK;
}

/* Whether it is not there (any more). */
static bool reap(lr_warden *warden, struct one *one, int flags)
{
	siginfo_t info = {0};

	/* It sends no signal when it ends, and is passed over by whoever waits for any child. */
	if (one->pid && waitid(P_PID, (id_t)one->pid, &info, WEXITED | __WALL | flags) == 0
	    && info.si_pid == 0)
		return false;
	if (one->pid) {
		close_if_open(warden->last);
		warden->last = one->pidfd;
	}
	one->pid = 0;
	one->pidfd = -1;
	return true;
}

/* Make one, which sleeps beside the other if that is there. */
static int make_one(lr_warden *warden, struct one *one, int other, struct lr_problem *ret_problem)
{
	uint8_t *stack_end = one->room + warden->host_page + STACK_BYTES;
	struct lr_warden_self *self = (struct lr_warden_self *)stack_end;
	sigset_t all, before;
	int pid, error;

	self->page = warden->page;
	self->host_page = (uint32_t)warden->host_page;
	self->other = other;
	/* Blocked there from the first moment, and for good. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = clone(lr_warden_live, stack_end, CLONE_FILES | CLONE_PIDFD, self, &one->pidfd);
	error = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return lr_problem_from_errno(ret_problem, error);
	one->pid = pid;
	if (other < 0)
		atomic_store(&warden->page->pid, pid);
	return LR_OK;
}

int lr_warden_start(lr_warden *warden, struct lr_problem *ret_problem)
{
	struct one *ones = warden->ones;
	int code = LR_OK;

	reap(warden, &ones[1], WNOHANG);
	if (reap(warden, &ones[0], WNOHANG)) {
		struct one empty = ones[0];

		/* Who slept is awake by now, or in a moment. */
		ones[0] = ones[1];
		ones[1] = empty;
	}
	if (!ones[0].pid)
		code = make_one(warden, &ones[0], -1, ret_problem);
	atomic_store(&warden->page->watched, ones[0].pidfd);
	if (code == LR_OK && !ones[1].pid)
		code = make_one(warden, &ones[1], ones[0].pidfd, ret_problem);
	return code;
}

void lr_warden_get_info(const lr_warden *warden, struct lr_warden_info *ret_info)
{
	*ret_info = (struct lr_warden_info){
		.pid = warden->ones[0].pid,
		.pidfd = warden->ones[0].pidfd,
		.second_pid = warden->ones[1].pid,
		.second_pidfd = warden->ones[1].pidfd,
		.page = warden->page_fd,
		.socket = warden->ends[1],
	};
}

static void ring(const lr_warden *warden)
{
	uint64_t one = 1;

	if (write(warden->page->bell, &one, sizeof(one)) < 0)
		return; /* It is ringing. */
}

void lr_warden_set_keeper(lr_warden *warden, int32_t pidfd)
{
	atomic_store(&warden->page->keeper, pidfd);
}

int lr_warden_add(lr_warden *warden, int32_t pid, int32_t pidfd)
{
	uint64_t task = (uint64_t)(uint32_t)pid << 32 | ((uint32_t)pidfd + 1);

	if (pid <= 0 || pidfd < 0)
		return LR_ERR_ARGUMENT;
	for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++) {
		uint64_t empty = 0;

		if (atomic_compare_exchange_strong(&warden->page->tasks[i], &empty, task)
		    || empty == task)
			return LR_OK;
	}
	return LR_ERR_LIMIT;
}

void lr_warden_remove(lr_warden *warden, int32_t pidfd)
{
	for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++)
		if ((uint32_t)atomic_load(&warden->page->tasks[i]) == (uint32_t)pidfd + 1)
			atomic_store(&warden->page->tasks[i], 0);
}

int lr_warden_bury_one(lr_warden *warden, int32_t uffd)
{
	int copy;

	if (!lr_warden_is_uffd(uffd))
		return LR_ERR_ARGUMENT;
	/* The warden's own: it closes it when there is nothing left of the memory. */
	copy = fcntl(uffd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return lr_problem_from_errno(NULL, errno);
	for (uint32_t i = 0; i < LR_WARDEN_BURIED_MAX; i++) {
		uint64_t empty = 0;

		if (atomic_compare_exchange_strong(&warden->page->buried[i], &empty,
						   (uint64_t)copy + 1)) {
			ring(warden);
			return LR_OK;
		}
	}
	close(copy);
	return LR_ERR_LIMIT;
}

static bool has_graves(const lr_warden *warden)
{
	for (uint32_t i = 0; i < LR_WARDEN_BURIED_MAX; i++)
		if (atomic_load(&warden->page->buried[i]))
			return true;
	return false;
}

void lr_warden_close(lr_warden *warden)
{
	if (!warden)
		return;
	if (has_graves(warden)) {
		/* They go on with those when this process has ended, and hold nothing else. */
		for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++)
			atomic_store(&warden->page->tasks[i], 0);
		atomic_store(&warden->page->keeper, -1);
		return;
	}
	for (int i = 1; i >= 0; i--) {
		if (warden->ones[i].pid) {
			kill(warden->ones[i].pid, SIGKILL);
			reap(warden, &warden->ones[i], 0);
		}
	}
	free_warden(warden);
}
