/* What the keeper of a dead maker asks: its end of the socket is nobody else's. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "warden.h"

static void send_answer(struct lr_warden_self *self, int fd)
{
	size_t bytes = offsetof(struct lr_warden_answer, items)
		       + self->answer.count * sizeof(self->answer.items[0]);
	struct iovec data = {.iov_base = &self->answer, .iov_len = bytes};
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (fd >= 0) {
		control.header = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
		};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.room);
	}
	if (syscall(SYS_sendmsg, self->page->socket, &message, MSG_NOSIGNAL) >= 0 || fd < 0)
		return;
	/* Most likely there is no such descriptor: that is the answer. */
	self->answer.value = errno;
	message.msg_control = NULL;
	message.msg_controllen = 0;
	syscall(SYS_sendmsg, self->page->socket, &message, MSG_NOSIGNAL);
}

static void list(struct lr_warden_self *self)
{
	struct lr_warden_answer *answer = &self->answer;
	int end = lr_warden_table_end();

	for (int fd = 0; fd < end && answer->count < LR_WARDEN_BURIED_MAX; fd++) {
		struct stat file;

		if (syscall(SYS_fcntl, fd, F_GETFD) < 0 || !lr_warden_is_uffd(fd)
		    || fstat(fd, &file) < 0)
			continue;
		answer->items[answer->count++] =
			(struct lr_warden_item){.number = fd, .inode = file.st_ino};
	}
}

static void answer_one(struct lr_warden_self *self, const struct lr_warden_question *question)
{
	int fd = -1;

	self->answer.request = question->request;
	self->answer.value = 0;
	self->answer.pid = (int32_t)syscall(SYS_getpid);
	self->answer.count = 0;
	switch (question->request) {
	case LR_WARDEN_FETCH:
		fd = question->number;
		self->answer.value = fd < 0 ? EBADF : 0;
		break;
	case LR_WARDEN_LIST:
		list(self);
		break;
	case LR_WARDEN_BURY:
		lr_warden_bury(self, question->number);
		break;
	case LR_WARDEN_LEAVE:
		/* Its maker may have given one up just before it died. */
		lr_warden_take_buried(self);
		/* Before it is said: the locks that its maker had, and its sockets, end here. */
		atomic_store(&self->page->is_left, 1);
		lr_warden_close_others(self, self->page->socket);
		break;
	default:
		self->answer.value = EINVAL;
	}
	send_answer(self, fd);
	if (atomic_load(&self->page->is_left))
		syscall(SYS_close, self->page->socket);
}

void lr_warden_serve(struct lr_warden_self *self)
{
	struct lr_warden_question question;

	while (!atomic_load(&self->page->is_left)) {
		struct iovec data = {.iov_base = &question, .iov_len = sizeof(question)};
		struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
		long got = syscall(SYS_recvmsg, self->page->socket, &message,
				   MSG_DONTWAIT | MSG_TRUNC);

		if (got < 0)
			return;
		if (got == sizeof(question))
			answer_one(self, &question);
	}
}
