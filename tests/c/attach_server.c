#include "attach_server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attach_wire.h"
#include "lazyrestore.h"

#define NAMES_MAX 4096

struct peer {
	const struct attach_server *server;
	lr_image *image;
	int socket;
	int uffd;
	int state;
	lr_session *session;
};

static void end(const char *what)
{
	fprintf(stderr, "attach_server: %s\n", what);
	_exit(1);
}

static void reach(const struct peer *peer, enum attach_step step)
{
	if (peer->server->die_at == step)
		kill(getpid(), SIGKILL);
}

/* 0: all of it; -1: the other side is gone. */
static int receive(struct peer *peer, void *data, size_t bytes)
{
	char control[CMSG_SPACE(8 * sizeof(int))];
	int *fds[] = {&peer->uffd, &peer->state};

	for (size_t have = 0; have < bytes;) {
		struct iovec part = {(char *)data + have, bytes - have};
		struct msghdr message = {
			.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		ssize_t got = recvmsg(peer->socket, &message, MSG_CMSG_CLOEXEC);
		struct cmsghdr *at = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;

		if (got <= 0)
			return -1;
		if (at)
			for (size_t i = 0; i < (at->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++)
				memcpy(fds[i], CMSG_DATA(at) + i * sizeof(int), sizeof(int));
		have += (size_t)got;
	}
	return 0;
}

static void send_all(const struct peer *peer, const void *data, size_t bytes, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {(void *)(uintptr_t)data, bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = control;
		message.msg_controllen = sizeof(control);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	sendmsg(peer->socket, &message, MSG_NOSIGNAL);
}

static void send_head(const struct peer *peer, const char *magic, uint32_t second, int fd)
{
	struct lr_wire_head head = {.first = LR_WIRE_VERSION, .second = second};

	memcpy(head.magic, magic, sizeof(head.magic));
	send_all(peer, &head, sizeof(head), fd);
}

static void tell(const struct peer *peer)
{
	struct lr_wire_region regions[8];
	struct lr_wire_table table = {0};
	struct lr_image_info info;
	char names[NAMES_MAX];

	lr_image_get_info(peer->image, &info);
	table.page_size = info.page_size;
	table.cluster_size = info.cluster_size;
	memcpy(table.digest, info.digest, sizeof(table.digest));
	for (uint32_t i = 0; i < info.region_count; i++) {
		struct lr_region_info region;

		lr_image_get_region(peer->image, i, &region);
		regions[i] = (struct lr_wire_region){
			.address = region.address,
			.length = region.length,
			.protection = region.protection,
			.name_bytes = region.name_bytes,
			.name_offset = table.names_bytes,
		};
		memcpy(names + table.names_bytes, region.name, region.name_bytes);
		table.names_bytes += region.name_bytes;
	}
	send_head(peer, LR_WIRE_REGIONS, info.region_count, -1);
	reach(peer, ATTACH_PART_TOLD);
	send_all(peer, &table, sizeof(table), -1);
	send_all(peer, regions, info.region_count * sizeof(regions[0]), -1);
	send_all(peer, names, table.names_bytes, -1);
}

static int serve(struct peer *peer, const struct lr_wire_head *head,
		 const struct lr_wire_ranges *ranges)
{
	struct lr_peer_range asked[16];
	struct lr_serve_options options = {
		.uffd = peer->uffd,
		.event_fd = -1,
		.page_size = ranges->page_size,
		.on_error = LR_ON_ERROR_FENCE,
		.ranges = asked,
		.range_count = head->second,
	};

	if (head->second > 16 || receive(peer, asked, head->second * sizeof(asked[0])) < 0)
		return -1;
	reach(peer, ATTACH_ASKED);
	if (peer->state < 0
	    && lr_serve_state(peer->image, ranges->page_size, &peer->state, NULL) < 0)
		end("no state");
	options.state = peer->state;
	if (lr_session_serve(peer->image, &options, &peer->session, NULL) < 0)
		return -1;
	reach(peer, ATTACH_SERVING);
	send_head(peer, LR_WIRE_SERVED, 0, peer->state);
	reach(peer, ATTACH_ANSWERED);
	return 0;
}

/* One peer, until it hangs up. */
static void attend(struct peer *peer)
{
	struct lr_wire_ranges ranges;
	struct lr_wire_head head;
	char byte;

	reach(peer, ATTACH_ACCEPTED);
	if (receive(peer, &head, sizeof(head)) < 0)
		return;
	reach(peer, ATTACH_GREETED);
	tell(peer);
	reach(peer, ATTACH_TOLD);
	if (receive(peer, &head, sizeof(head)) < 0 || receive(peer, &ranges, sizeof(ranges)) < 0
	    || serve(peer, &head, &ranges) < 0)
		return;
	if (peer->server->does_fill) {
		if (lr_session_fill(peer->session, NULL) < 0
		    || lr_session_wait(peer->session, -1) < 0)
			end("the fill failed");
		send_head(peer, LR_WIRE_COMPLETE, 0, -1);
	}
	while (recv(peer->socket, &byte, 1, 0) > 0)
		;
}

static void close_if(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void run(const struct attach_server *server, int listener)
{
	lr_image *image = NULL;

	if (server->image && lr_image_open(server->image, &image, NULL) < 0)
		end("cannot open the image");
	for (;;) {
		struct peer peer = {.server = server, .image = image, .uffd = -1, .state = -1};

		peer.socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (peer.socket < 0)
			end("cannot accept");
		if (server->says) {
			char byte;

			send_all(&peer, server->says, server->says_bytes, -1);
			while (!server->does_close && recv(peer.socket, &byte, 1, 0) > 0)
				;
		} else {
			attend(&peer);
		}
		lr_session_close(peer.session);
		close_if(peer.uffd);
		close_if(peer.state);
		close(peer.socket);
	}
}

static pid_t start(const struct attach_server *server)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	strncpy(address.sun_path, server->socket, sizeof(address.sun_path) - 1);
	unlink(server->socket);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0
	    || chmod(server->socket, 0666) < 0 || listen(listener, 64) < 0)
		end("cannot listen");
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		end("cannot fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run(server, listener);
	}
	close(listener);
	return pid;
}

/* By shared memory: whoever asks may have closed all of his descriptors. */
static struct order {
	_Atomic int is_given; /* 1: to be done; 0: done */
	enum { START, WAIT } what;
	struct attach_server server;
	char image[64];
	char socket[108];
	char says[256];
	pid_t pid;
} *order;

static void pause_shortly(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static void take_orders(void)
{
	for (;; pause_shortly()) {
		if (!order->is_given)
			continue;
		if (order->what == START) {
			order->server.image = order->image;
			order->server.socket = order->socket;
			if (order->server.says)
				order->server.says = order->says;
			order->pid = start(&order->server);
		} else if (waitpid(order->pid, NULL, 0) != order->pid) {
			end("cannot wait");
		}
		order->is_given = 0;
	}
}

void attach_server_prepare(void)
{
	pid_t pid;

	order = mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (order == MAP_FAILED)
		end("no memory");
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		end("cannot fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		take_orders();
	}
}

static void give_order(void)
{
	order->is_given = 1;
	while (order->is_given)
		pause_shortly();
}

pid_t attach_server_start(const struct attach_server *server)
{
	order->what = START;
	order->server = *server;
	snprintf(order->image, sizeof(order->image), "%s", server->image);
	snprintf(order->socket, sizeof(order->socket), "%s", server->socket);
	if (server->says_bytes > sizeof(order->says))
		end("it says too much");
	if (server->says)
		memcpy(order->says, server->says, server->says_bytes);
	give_order();
	return order->pid;
}

void attach_server_wait(pid_t pid)
{
	order->what = WAIT;
	order->pid = pid;
	give_order();
}

void attach_server_kill(pid_t pid)
{
	if (kill(pid, SIGKILL) < 0)
		end("cannot kill");
	attach_server_wait(pid);
}

const char *attach_server_folder(void)
{
	static char path[32];

	/* Anew each time: mkdtemp writes over it. */
	snprintf(path, sizeof(path), "/tmp/lr-attach-XXXXXX");
	if (!mkdtemp(path) || chmod(path, 0711) < 0)
		end("cannot make a folder");
	return path;
}
