/* The process that shares a descriptor table, and what it does when its maker has ended. */
#include "check.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "lazyrestore.h"
#include "peer.h"
#include "warden.h"

#define PAGES 64

static int64_t let_go(struct peer *peer, uint64_t a, uint64_t b)
{
	(void)a;
	(void)b;
	return close(peer->uffd);
}

/* The byte that is read there. */
static int64_t touch(struct peer *peer, uint64_t page, uint64_t b)
{
	(void)b;
	signal(SIGBUS, SIG_DFL); /* a sanitizer has its own idea of that */
	return peer->memory[page * KERNEL_PAGE];
}

/* A child of which nobody is told. It touches a page when something comes, and says what it read.
 */
static int64_t beget(struct peer *peer, uint64_t talk, uint64_t b)
{
	pid_t pid = fork();
	char byte;

	(void)b;
	if (pid != 0)
		return pid;
	close(peer->socket);
	signal(SIGBUS, SIG_DFL);
	if (read((int)talk, &byte, 1) == 1) {
		byte = (char)peer->memory[5 * KERNEL_PAGE];
		if (write((int)talk, &byte, 1) != 1)
			_exit(3);
	}
	_exit(0);
}

/* Somebody who serves nothing: the holder of descriptors. It says when it is ready, and does what
 * the case has it do until it is killed. */
struct maker {
	pid_t pid;
	pid_t warden;
	pid_t second;
	int socket; /* whatever is sent comes back, but for orders */
	int asking; /* the keeper's end */
	int page_fd;
	struct lr_warden_page *page;
};

struct setting {
	struct peer *peer;
	uint32_t kills;
	int keeper; /* pidfd, or -1 */
	size_t memory;
};

enum order { CHANGE = 1, END = 2, READ = 3, BURY = 4, REPLACE = 5 };

static void obey(lr_warden *warden, const struct setting *setting, uint8_t *memory, int socket)
{
	struct lr_warden_info info;
	struct uffd_msg message;
	int order;

	while (peer_receive(socket, &order, sizeof(order), NULL)) {
		if (order == CHANGE)
			memset(memory, 2, setting->memory);
		if (order == READ)
			while (read(setting->peer->uffd, &message, sizeof(message))
				       != sizeof(message)
			       || message.event != UFFD_EVENT_FORK)
				usleep(1000);
		if (order == BURY) {
			CHECK_EQ(lr_warden_bury_one(warden, setting->peer->uffd), LR_OK);
			CHECK_CALL(close(setting->peer->uffd));
		}
		if (order == REPLACE) {
			lr_warden_get_info(warden, &info);
			CHECK_CALL(kill(info.pid, SIGKILL));
			CHECK_EQ(poll(&(struct pollfd){.fd = info.pidfd, .events = POLLIN}, 1, -1),
				 1);
			CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
		}
		if (order == END) {
			lr_warden_close(warden);
			warden = NULL;
		}
		peer_send(socket, &order, sizeof(order), -1);
	}
	_exit(0);
}

static void make(const struct setting *setting, int socket)
{
	struct lr_warden_info info;
	lr_warden *warden;
	uint8_t *memory = NULL;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (setting->memory) {
		memory = malloc(setting->memory);
		CHECK(memory);
		memset(memory, 1, setting->memory);
	}
	CHECK_EQ(lr_warden_open(setting->kills, &warden, NULL), LR_OK);
	lr_warden_set_keeper(warden, setting->keeper);
	CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
	lr_warden_get_info(warden, &info);
	CHECK(info.pid > 0);
	if (setting->peer && setting->kills)
		CHECK_EQ(lr_warden_add(warden, setting->peer->pid,
				       (int32_t)CHECK_CALL(
					       syscall(SYS_pidfd_open, setting->peer->pid, 0))),
			 LR_OK);
	peer_send(socket, &info.pid, sizeof(info.pid), info.socket);
	peer_send(socket, &info.second_pid, sizeof(info.second_pid), info.page);
	obey(warden, setting, memory, socket);
}

static void maker_start(struct maker *maker, const struct setting *setting)
{
	int sockets[2], pid;

	CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
	fflush(NULL);
	maker->pid = (pid_t)CHECK_CALL(fork());
	if (maker->pid == 0) {
		close(sockets[0]);
		if (setting->peer)
			close(setting->peer->socket);
		make(setting, sockets[1]);
	}
	close(sockets[1]);
	maker->socket = sockets[0];
	CHECK(peer_receive(maker->socket, &pid, sizeof(pid), &maker->asking));
	CHECK(peer_receive(maker->socket, &maker->second, sizeof(maker->second), &maker->page_fd));
	maker->page = mmap(NULL, sizeof(*maker->page), PROT_READ, MAP_SHARED, maker->page_fd, 0);
	CHECK(maker->page != MAP_FAILED);
	CHECK_EQ(maker->page->pid, pid);
	maker->warden = pid;
	if (setting->peer && setting->peer->uffd >= 0) {
		close(setting->peer->uffd);
		setting->peer->uffd = -1;
	}
}

static void maker_do(struct maker *maker, int order)
{
	peer_send(maker->socket, &order, sizeof(order), -1);
	CHECK(peer_receive(maker->socket, &order, sizeof(order), NULL));
}

static void maker_kill(struct maker *maker)
{
	CHECK_CALL(kill(maker->pid, SIGKILL));
	CHECK_EQ(waitpid(maker->pid, NULL, 0), maker->pid);
}

static void wait_until_gone(pid_t pid)
{
	while (kill(pid, 0) == 0)
		usleep(1000);
}

/* Neither stays behind: what one of them closes, in the table of both, the other lets go of too. */
static void wait_until_both_are_gone(const struct maker *maker)
{
	wait_until_gone(maker->warden);
	wait_until_gone(maker->second);
}

/* A task whose memory nobody else can serve. */
static void task_start(struct peer *peer)
{
	peer_start(peer, PAGES, UFFD_FEATURE_EVENT_FORK);
	CHECK_EQ(peer_do(peer, let_go, 0, 0), 0);
}

static void expect_death(struct peer *peer, int signal_number)
{
	int64_t byte;

	if (peer_receive(peer->socket, &byte, sizeof(byte), NULL))
		CHECK_FAIL("it read %lld", (long long)byte);
	check_died(peer->pid, signal_number, __FILE__, __LINE__);
}

/* Without a warden the literal outcome is zeros: what the rest of this file is about. */
static void without_one_it_reads_zeros(void)
{
	struct peer peer;
	pid_t maker;

	task_start(&peer);
	fflush(NULL);
	maker = (pid_t)CHECK_CALL(fork());
	if (maker == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	close(peer.uffd);
	peer.uffd = -1;
	peer_order(&peer, touch, 3, 0);
	CHECK(peer_waits(&peer, 50));
	CHECK_CALL(kill(maker, SIGKILL));
	CHECK_EQ(waitpid(maker, NULL, 0), maker);
	CHECK_EQ(peer_result(&peer), 0);
	peer_end(&peer);
}

static void ends_who_nobody_serves(void)
{
	/* In the middle of a touch, or before it. */
	for (int is_waiting = 0; is_waiting < 2; is_waiting++) {
		struct peer peer;
		struct maker maker;

		task_start(&peer);
		maker_start(&maker, &(struct setting){&peer, 1, -1, 0});
		if (is_waiting) {
			peer_order(&peer, touch, 3, 0);
			CHECK(peer_waits(&peer, 20));
		}
		maker_kill(&maker);
		if (!is_waiting)
			/* (It may be dead.) */
			send(peer.socket, &(struct peer_order){touch, 3, 0},
			     sizeof(struct peer_order), MSG_NOSIGNAL);
		expect_death(&peer, SIGKILL);
		wait_until_both_are_gone(&maker);
	}
}

static void gives_sigbus_where_nobody_is_to_be_ended(void)
{
	struct peer peer;
	struct maker maker;

	if (!(kernel_features() & KERNEL_FEATURE_POISON))
		SKIP("this kernel cannot poison");
	task_start(&peer);
	maker_start(&maker, &(struct setting){&peer, 0, -1, 0});
	peer_order(&peer, touch, 3, 0);
	CHECK(peer_waits(&peer, 20));
	maker_kill(&maker);
	expect_death(&peer, SIGBUS);
	wait_until_both_are_gone(&maker);
}

/* Its userfaultfd came into the maker's table a moment ago: nobody else has it, and nobody knows
 * who it is. Its parent lives, or has ended. */
static void ends_children_that_nobody_knows(void)
{
	if (!(kernel_features() & KERNEL_FEATURE_POISON))
		SKIP("this kernel cannot poison");
	for (int is_orphan = 0; is_orphan < 2; is_orphan++) {
		struct peer peer;
		struct maker maker;
		char byte = 1;
		int ends[2];

		CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
		task_start(&peer);
		maker_start(&maker, &(struct setting){&peer, 1, -1, 0});
		peer_order(&peer, beget, (uint64_t)ends[1], 0);
		maker_do(&maker, READ);
		CHECK(peer_result(&peer) > 0);
		close(ends[1]);
		if (is_orphan)
			peer_kill(&peer);
		maker_kill(&maker);
		if (!is_orphan)
			expect_death(&peer, SIGKILL);
		send(ends[0], &byte, 1, MSG_NOSIGNAL); /* (It may be dead.) */
		CHECK(read(ends[0], &byte, 1) <= 0);
		close(ends[0]);
		wait_until_both_are_gone(&maker);
	}
}

/* Nothing of what its maker had stays open once that has ended in good order. */
static void ends_before_its_maker(void)
{
	struct maker maker;
	int pipes[2];
	char byte;

	CHECK_CALL(pipe(pipes));
	maker_start(&maker, &(struct setting){NULL, 1, -1, 0});
	close(pipes[1]);
	maker_do(&maker, END);
	CHECK_ERRNO(kill(maker.warden, 0), ESRCH);
	close(maker.socket);
	CHECK_CHILD(maker.pid);
	CHECK_EQ(read(pipes[0], &byte, 1), 0);
}

static void is_started_again(void)
{
	struct lr_warden_info info, again;
	lr_warden *warden;
	struct pollfd end;

	CHECK_EQ(lr_warden_open(1, &warden, NULL), LR_OK);
	CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
	lr_warden_get_info(warden, &info);
	CHECK(info.pid > 0 && info.second_pid > 0);
	CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
	lr_warden_get_info(warden, &again);
	CHECK_EQ(again.pid, info.pid);
	CHECK_EQ(again.second_pid, info.second_pid);
	end = (struct pollfd){.fd = info.pidfd, .events = POLLIN};
	/* What ends programs does not end it, but for that which cannot be refused. */
	CHECK_CALL(kill(info.pid, SIGTERM));
	CHECK_CALL(kill(info.pid, SIGINT));
	CHECK_EQ(poll(&end, 1, 50), 0);
	CHECK_CALL(kill(info.pid, SIGKILL));
	CHECK_EQ(poll(&end, 1, -1), 1);
	CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
	lr_warden_get_info(warden, &again);
	CHECK_EQ(again.pid, info.second_pid);
	CHECK(again.second_pid > 0 && again.second_pid != info.pid);
	CHECK_EQ(again.socket, info.socket);
	/* Both at once. */
	end = (struct pollfd){.fd = again.second_pidfd, .events = POLLIN};
	CHECK_CALL(kill(again.pid, SIGKILL));
	CHECK_CALL(kill(again.second_pid, SIGKILL));
	CHECK_EQ(poll(&end, 1, -1), 1);
	end.fd = again.pidfd;
	CHECK_EQ(poll(&end, 1, -1), 1);
	CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
	lr_warden_get_info(warden, &again);
	CHECK(again.pid > 0 && again.second_pid > 0);
	/* Whoever waits for any child does not meet them. */
	CHECK_ERRNO(waitpid(-1, NULL, WNOHANG), ECHILD);
	lr_warden_close(warden);
	CHECK_ERRNO(kill(again.pid, 0), ESRCH);
	CHECK_ERRNO(kill(again.second_pid, 0), ESRCH);
}

static long anonymous_kib(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	file = fopen(path, "re");
	CHECK(file != NULL);
	while (kib < 0 && fgets(line, sizeof(line), file))
		if (strncmp(line, "Anonymous:", 10) == 0)
			kib = strtol(line + 10, NULL, 10);
	fclose(file);
	CHECK(kib >= 0);
	return kib;
}

/* It does not hold on to what its maker had when it was made. */
static void costs_little(void)
{
	struct maker maker;
	long kib;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	SKIP("a sanitizer's memory has to stay");
#endif
	maker_start(&maker, &(struct setting){NULL, 1, -1, 64 << 20});
	maker_do(&maker, CHANGE);
	while ((kib = anonymous_kib(maker.warden)) > 1024)
		usleep(1000);
	maker_do(&maker, END);
	close(maker.socket);
	CHECK_CHILD(maker.pid);
}

static atomic_bool is_enough;

static void *use_memory(void *argument)
{
	(void)argument;
	while (!atomic_load(&is_enough)) {
		void *some = malloc(100);

		free(some);
	}
	return NULL;
}

/* Whatever locks others hold at that moment. */
static void is_made_among_threads(void)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, use_memory, NULL), 0);
	for (int i = 0; i < 50; i++) {
		struct lr_warden_info info;
		lr_warden *warden;

		CHECK_EQ(lr_warden_open(1, &warden, NULL), LR_OK);
		CHECK_EQ(lr_warden_start(warden, NULL), LR_OK);
		lr_warden_get_info(warden, &info);
		CHECK_EQ(kill(info.pid, 0), 0);
		lr_warden_close(warden);
	}
	atomic_store(&is_enough, true);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

/* ---- What the keeper asks ---- */

static struct lr_warden_answer answer;

static int ask(const struct maker *maker, uint32_t request, int number)
{
	struct lr_warden_question question = {request, number};
	int fd;

	CHECK_EQ(send(maker->asking, &question, sizeof(question), 0), sizeof(question));
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {.iov_base = &answer, .iov_len = sizeof(answer)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	ssize_t got = recvmsg(maker->asking, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	CHECK(got >= (ssize_t)offsetof(struct lr_warden_answer, items));
	CHECK_EQ(answer.request, request);
	if (!header)
		return -1;
	memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return fd;
}

static int pidfd_of_self(void)
{
	return (int)CHECK_CALL(syscall(SYS_pidfd_open, getpid(), 0));
}

static void gives_the_keeper_everything(void)
{
	struct maker maker;
	struct peer peer;
	struct stat file;
	uint8_t page[KERNEL_PAGE];
	int ends[2], fds[2];

	CHECK_CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
	task_start(&peer);
	maker_start(&maker, &(struct setting){&peer, 1, pidfd_of_self(), 0});
	peer_order(&peer, beget, (uint64_t)ends[1], 0);
	maker_do(&maker, READ);
	CHECK(peer_result(&peer) > 0);
	maker_kill(&maker);

	CHECK_EQ(ask(&maker, LR_WARDEN_LIST, 0), -1);
	CHECK_EQ(answer.count, 2);
	CHECK_EQ(answer.pid, maker.page->pid);
	CHECK_NE(answer.items[0].inode, answer.items[1].inode);
	for (uint32_t i = 0; i < 2; i++) {
		struct lr_warden_item item = answer.items[i];

		fds[i] = ask(&maker, LR_WARDEN_FETCH, item.number);
		CHECK_EQ(answer.value, 0);
		CHECK_CALL(fstat(fds[i], &file));
		CHECK_EQ(file.st_ino, item.inode);
	}
	CHECK_EQ(ask(&maker, LR_WARDEN_FETCH, 9999), -1);
	CHECK_EQ(answer.value, EBADF);
	CHECK_EQ(ask(&maker, LR_WARDEN_LEAVE, 0), -1);
	wait_until_both_are_gone(&maker);
	/* The tasks live, and wait. */
	peer_order(&peer, touch, 3, 0);
	CHECK(peer_waits(&peer, 20));
	memset(page, 7, sizeof(page));
	for (int i = 0; i < 2; i++)
		CHECK_EQ(kernel_copy(fds[i], peer.memory + 3 * KERNEL_PAGE, page, 1, NULL), 0);
	CHECK_EQ(peer_result(&peer), 7);
	peer_kill(&peer);
}

/* The first of the two is killed, before its maker or after that. */
static void the_second_goes_on(void)
{
	for (int is_after = 0; is_after < 2; is_after++) {
		struct maker maker;
		struct peer peer;

		task_start(&peer);
		maker_start(&maker, &(struct setting){&peer, 1, pidfd_of_self(), 0});
		CHECK_CALL(kill(is_after ? maker.pid : maker.warden, SIGKILL));
		CHECK_CALL(kill(is_after ? maker.warden : maker.pid, SIGKILL));
		CHECK_EQ(waitpid(maker.pid, NULL, 0), maker.pid);
		CHECK_EQ(ask(&maker, LR_WARDEN_LIST, 0), -1);
		CHECK_EQ(answer.count, 1);
		CHECK_NE(answer.pid, maker.warden);
		CHECK_EQ(ask(&maker, LR_WARDEN_LEAVE, 0), -1);
		wait_until_gone(answer.pid);
		peer_kill(&peer);
	}
}

/* What the maker had locked is free when it has left, and only then. */
static void leaves_all_but_the_graves(void)
{
	struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct maker maker;
	struct peer peer;
	uint32_t count;
	int fd, again;
	char path[64];

	if (!(kernel_features() & KERNEL_FEATURE_POISON))
		SKIP("this kernel cannot poison");
	task_start(&peer);
	fd = (int)CHECK_CALL(memfd_create("locked", MFD_CLOEXEC));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = (int)CHECK_CALL(open(path, O_RDWR | O_CLOEXEC));
	CHECK_CALL(fcntl(fd, F_OFD_SETLK, &all));
	maker_start(&maker, &(struct setting){&peer, 0, pidfd_of_self(), 0});
	close(fd);
	maker_kill(&maker);
	CHECK_ERRNO(fcntl(again, F_OFD_SETLK, &all), EAGAIN);
	CHECK_EQ(ask(&maker, LR_WARDEN_LIST, 0), -1);
	count = answer.count;
	CHECK_EQ(count, 1);
	CHECK_EQ(ask(&maker, LR_WARDEN_BURY, answer.items[0].number), -1);
	CHECK_EQ(ask(&maker, LR_WARDEN_LEAVE, 0), -1);
	CHECK_CALL(fcntl(again, F_OFD_SETLK, &all));
	/* It lives for that alone. */
	CHECK_EQ(kill(maker.warden, 0), 0);
	/* And the other one beside it, which looks at the first again here. */
	CHECK_CALL(kill(maker.second, SIGSTOP));
	CHECK_CALL(kill(maker.second, SIGCONT));
	usleep(50000);
	CHECK_EQ(maker.page->pid, maker.warden);
	peer_order(&peer, touch, 3, 0);
	expect_death(&peer, SIGBUS);
	wait_until_both_are_gone(&maker);
}

/* Memory that the maker gives up while it lives, and then ends. */
static void buries_while_its_maker_lives(void)
{
	for (int is_ended = 0; is_ended < 3; is_ended++) {
		struct maker maker;
		struct peer peer;

		if (!(kernel_features() & KERNEL_FEATURE_POISON))
			SKIP("this kernel cannot poison");
		task_start(&peer);
		maker_start(&maker, &(struct setting){&peer, 0, -1, 0});
		maker_do(&maker, BURY);
		if (is_ended == 1)
			maker_do(&maker, END);
		if (is_ended == 2) /* another one goes on */
			maker_do(&maker, REPLACE);
		if (is_ended) {
			close(maker.socket);
			CHECK_CHILD(maker.pid);
		}
		peer_order(&peer, touch, 3, 0);
		expect_death(&peer, SIGBUS);
		if (!is_ended) {
			maker_do(&maker, END);
			close(maker.socket);
			CHECK_CHILD(maker.pid);
		}
		wait_until_both_are_gone(&maker);
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(without_one_it_reads_zeros),
	CHECK_CASE(ends_who_nobody_serves),
	CHECK_CASE(gives_sigbus_where_nobody_is_to_be_ended),
	CHECK_CASE(ends_children_that_nobody_knows),
	CHECK_CASE(ends_before_its_maker),
	CHECK_CASE(is_started_again),
	CHECK_CASE(costs_little),
	CHECK_CASE(is_made_among_threads),
	CHECK_CASE(gives_the_keeper_everything),
	CHECK_CASE(the_second_goes_on),
	CHECK_CASE(leaves_all_but_the_graves),
	CHECK_CASE(buries_while_its_maker_lives),
};
CHECK_MAIN(cases)
