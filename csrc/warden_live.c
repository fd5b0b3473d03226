/* The warden's own life: it watches, and does what is to be done when its maker has ended. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "warden.h"

/* Rounds of 10 ms in which tasks are killed: their children may be begetting others. */
#define KILLING_ROUNDS 500

static int poll_some(struct pollfd *polls, uint32_t count, int64_t timeout_ms)
{
	struct timespec timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000000};

	return (int)syscall(SYS_ppoll, polls, count, timeout_ms < 0 ? NULL : &timeout, NULL, 8);
}

static bool is_over(int pidfd)
{
	struct pollfd one = {.fd = pidfd, .events = POLLIN};

	/* What is no descriptor is nobody's. */
	return poll_some(&one, 1, 0) > 0;
}

static void drain(int bell)
{
	uint64_t count;

	if (syscall(SYS_read, bell, &count, sizeof(count)) < 0)
		return;
}

void lr_warden_take_buried(struct lr_warden_self *self)
{
	for (uint32_t i = 0; i < LR_WARDEN_BURIED_MAX; i++) {
		uint64_t buried = atomic_load(&self->page->buried[i]);

		if (buried)
			lr_warden_bury(self, (int)(buried - 1));
	}
}

/* Sleep until something may have to be done. */
static void wait_for_more(struct lr_warden_self *self, int first, int second, int64_t timeout_ms)
{
	uint32_t count = 0;

	self->polls[count++] = (struct pollfd){.fd = first, .events = POLLIN};
	self->polls[count++] = (struct pollfd){.fd = second, .events = POLLIN};
	for (uint32_t i = 0; i < self->grave_count; i++)
		self->polls[count++] = (struct pollfd){.fd = self->graves[i], .events = POLLIN};
	poll_some(self->polls, count, timeout_ms);
}

/* Graves are all that is to be looked after from now on, by whichever warden. */
static void leave_all_else(struct lr_warden_self *self)
{
	if (atomic_exchange(&self->page->is_left, 1) == 0)
		lr_warden_close_others(self, -1);
}

/* Nobody serves, and nobody will. */
static void bring_to_an_end(struct lr_warden_self *self)
{
	bool is_killing = atomic_load(&self->page->kills) != 0;

	for (uint32_t round = 0;; round++) {
		if (is_killing)
			is_killing = lr_warden_kill(self) && round < KILLING_ROUNDS;
		if (round == 0)
			lr_warden_bury_all(self);
		if (!is_killing)
			leave_all_else(self);
		lr_warden_answer_graves(self);
		lr_warden_forget_gone(self);
		if (!is_killing && self->grave_count == 0)
			return;
		wait_for_more(self, -1, -1, is_killing || round < KILLING_ROUNDS ? 10 : 1000);
	}
}

/* Be as little in the way as possible. */
static void settle_down(void)
{
	int fd;

	syscall(SYS_setsid);
	syscall(SYS_chdir, "/");
	syscall(SYS_prctl, PR_SET_NAME, "lr-warden", 0, 0, 0);
	fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (syscall(SYS_write, fd, "-1000", 5) < 0)
		syscall(SYS_write, fd, "0", 1); /* Its maker's may be worse. */
	syscall(SYS_close, fd);
}

/* Until the other one has ended. */
static void sleep_beside(struct lr_warden_self *self)
{
	struct pollfd other = {.fd = self->other, .events = POLLIN};

	/* (The maker closes that not before there is another one to sleep beside this.) */
	while (self->other >= 0 && poll_some(&other, 1, -1) <= 0)
		continue;
	atomic_store(&self->page->pid, (int32_t)syscall(SYS_getpid));
}

int lr_warden_live(void *argument)
{
	struct lr_warden_self *self = argument;
	struct lr_warden_page *page = self->page;

	settle_down();
	lr_warden_shed(self);
	sleep_beside(self);
	lr_warden_take_buried(self);
	for (;;) {
		int64_t timeout_ms = self->grave_count ? 1000 : -1;
		int keeper = atomic_load(&page->keeper);

		if (atomic_load(&page->is_left)) {
			if (self->grave_count == 0)
				return 0;
			wait_for_more(self, -1, -1, timeout_ms);
		} else if (!self->is_own && !is_over(page->maker)) {
			drain(page->bell);
			lr_warden_take_buried(self);
			wait_for_more(self, page->maker, page->bell, timeout_ms);
		} else if (!self->is_own) {
			/* What was read there may have been changed in the last moment. */
			self->is_own = true;
		} else if (keeper < 0 || is_over(keeper)) {
			bring_to_an_end(self);
			return 0;
		} else {
			lr_warden_serve(self);
			if (!atomic_load(&page->is_left))
				wait_for_more(self, keeper, page->socket, timeout_ms);
		}
		lr_warden_answer_graves(self);
		lr_warden_forget_gone(self);
	}
}
