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
	int ends[2];   /* the warden's, the keeper's */
	uint8_t *room; /* guard, stack, struct lr_warden_self, guard */
	size_t room_bytes;
	size_t host_page;
	pid_t pid;
	int pidfd;
};

static size_t round_up(size_t bytes, size_t page)
{
	return (bytes + page - 1) / page * page;
}

/* Where nothing that lies beside it is one mapping with it. */
static int make_room(lr_warden *warden)
{
	size_t page = warden->host_page;
	size_t inner = STACK_BYTES + round_up(sizeof(struct lr_warden_self), page);

	warden->room_bytes = inner + 2 * page;
	warden->room = mmap(NULL, warden->room_bytes, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (warden->room == MAP_FAILED) {
		warden->room = NULL;
		return errno;
	}
	return mprotect(warden->room + page, inner, PROT_READ | PROT_WRITE) < 0 ? errno : 0;
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
	page->keeper = -1;
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
	if (warden->room)
		munmap(warden->room, warden->room_bytes);
	close_if_open(warden->page_fd);
	close_if_open(warden->ends[0]);
	close_if_open(warden->ends[1]);
	close_if_open(warden->pidfd);
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
	warden->page_fd = warden->pidfd = -1;
	warden->host_page = (size_t)sysconf(_SC_PAGESIZE);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, warden->ends) < 0) {
		warden->ends[0] = warden->ends[1] = -1;
		error = errno;
	}
	if (!error) {
		/* A list of all is one packet. */
		setsockopt(warden->ends[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
		error = make_page(warden, kills);
	}
	if (!error)
		error = make_room(warden);
	if (error) {
		free_warden(warden);
		return lr_problem_from_errno(ret_problem, error);
	}
	*ret_warden = warden;
	return LR_OK;
}

/* Whether it has ended; then nothing is left of it. */
static bool reap(lr_warden *warden, int flags)
{
	siginfo_t info = {0};

	/* It sends no signal when it ends, and is passed over by whoever waits for any child. */
	if (warden->pid > 0
	    && waitid(P_PID, (id_t)warden->pid, &info, WEXITED | __WALL | flags) == 0
	    && info.si_pid == 0)
		return false;
	close_if_open(warden->pidfd);
	warden->pidfd = -1;
	warden->pid = 0;
	atomic_store(&warden->page->pid, 0);
	return true;
}

int lr_warden_start(lr_warden *warden, struct lr_problem *ret_problem)
{
	uint8_t *stack_end = warden->room + warden->host_page + STACK_BYTES;
	struct lr_warden_self *self = (struct lr_warden_self *)stack_end;
	sigset_t all, before;
	int pid, error;

	if (warden->pid && !reap(warden, WNOHANG))
		return LR_OK;
	self->page = warden->page;
	self->host_page = (uint32_t)warden->host_page;
	/* Blocked in the warden from its first moment, and for good. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = clone(lr_warden_live, stack_end, CLONE_FILES | CLONE_PIDFD, self, &warden->pidfd);
	error = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return lr_problem_from_errno(ret_problem, error);
	warden->pid = pid;
	atomic_store(&warden->page->pid, pid);
	return LR_OK;
}

void lr_warden_get_info(const lr_warden *warden, struct lr_warden_info *ret_info)
{
	*ret_info = (struct lr_warden_info){
		.pid = warden->pid,
		.pidfd = warden->pidfd,
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
	if (warden->pid && has_graves(warden)) {
		/* It goes on with those when this process has ended, and holds nothing else. */
		for (uint32_t i = 0; i < LR_WARDEN_TASKS_MAX; i++)
			atomic_store(&warden->page->tasks[i], 0);
		atomic_store(&warden->page->keeper, -1);
		return;
	}
	if (warden->pid) {
		kill(warden->pid, SIGKILL);
		reap(warden, 0);
	}
	free_warden(warden);
}
