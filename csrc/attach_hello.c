/* What is said to a service, and what it may say. Nothing of it is trusted. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach.h"
#include "span.h"

bool lr_attach_may_retry(int code)
{
	return code == LR_ERR_GONE || code == LR_ERR_NOT_FOUND;
}

static bool is_magic(const struct lr_wire_head *head, const char *magic)
{
	return memcmp(head->magic, magic, LR_WIRE_MAGIC_BYTES) == 0;
}

static int send_head(struct lr_talk *talk, const char *magic, uint32_t flags)
{
	struct lr_wire_head head = {.first = LR_WIRE_VERSION, .second = flags};

	memcpy(head.magic, magic, LR_WIRE_MAGIC_BYTES);
	return lr_talk_send(talk, &head, sizeof(head), NULL, 0);
}

/* What it says may be shown to people: one line, and nothing that moves their cursor. */
static int take_refusal(struct lr_talk *talk, const struct lr_wire_head *head,
			struct lr_refused *refused)
{
	size_t bytes = head->second, kept = sizeof(refused->text) - 1;
	int code;

	if (bytes > LR_WIRE_TEXT_MAX)
		return LR_ERR_PROTOCOL;
	kept = bytes < kept ? bytes : kept;
	code = lr_talk_receive(talk, refused->text, kept, NULL);
	if (code < 0)
		return code;
	refused->text[kept] = '\0';
	for (size_t i = 0; i < kept; i++)
		if ((unsigned char)refused->text[i] < ' ' || refused->text[i] == 127)
			refused->text[i] = ' ';
	refused->code = head->first;
	return LR_ERR_REFUSED;
}

/* The head of the message that is due, or of a refusal. */
static int receive_head(struct lr_talk *talk, const char *magic, struct lr_wire_head *ret_head,
			int *ret_fd, struct lr_refused *refused)
{
	int code = lr_talk_receive(talk, ret_head, sizeof(*ret_head), ret_fd);

	if (code < 0)
		return code;
	if (is_magic(ret_head, LR_WIRE_REFUSE))
		code = take_refusal(talk, ret_head, refused);
	else if (!is_magic(ret_head, magic) || ret_head->first != LR_WIRE_VERSION)
		code = LR_ERR_PROTOCOL;
	if (code < 0 && ret_fd && *ret_fd >= 0)
		close(*ret_fd);
	return code;
}

static bool table_makes_sense(const struct lr_wire_head *head, const struct lr_wire_table *table)
{
	return head->second <= LR_WIRE_REGIONS_MAX && table->names_bytes <= LR_WIRE_NAMES_MAX
	       && table->page_size > 0 && (table->page_size & (table->page_size - 1)) == 0
	       && table->cluster_size >= table->page_size;
}

/* Names are kept terminated, one after another, as they are found. */
static int take_region(struct lr_attachment *attachment, uint32_t number,
		       const struct lr_wire_region *region, const char *names, uint64_t names_bytes,
		       char **name_at, const char *name_end)
{
	struct lr_region_info *info = &attachment->regions[number];

	if (!lr_span_fits(region->name_offset, region->name_bytes, names_bytes)
	    || region->length > (1ull << 56) || name_end - *name_at <= (int64_t)region->name_bytes)
		return LR_ERR_PROTOCOL;
	info->address = region->address;
	info->length = region->length;
	info->protection = region->protection;
	info->name_bytes = region->name_bytes;
	info->name = *name_at;
	memcpy(*name_at, names + region->name_offset, region->name_bytes);
	*name_at += region->name_bytes + 1;
	return LR_OK;
}

static int take_regions(struct lr_attachment *attachment, struct lr_talk *talk, uint32_t count,
			uint64_t names_bytes)
{
	struct lr_wire_region *table = calloc(count + 1u, sizeof(*table));
	char *names = malloc(names_bytes + 1);
	/* Names that overlap are nobody's: so they fit. */
	uint64_t room = names_bytes + count;
	int code = LR_ERR_NOMEM;
	char *at;

	attachment->names = malloc(room + 1);
	attachment->regions = calloc(count + 1u, sizeof(*attachment->regions));
	attachment->places = calloc(count + 1u, sizeof(*attachment->places));
	if (table && names && attachment->names && attachment->regions && attachment->places)
		code = lr_talk_receive(talk, table, count * sizeof(*table), NULL);
	if (code == LR_OK)
		code = lr_talk_receive(talk, names, names_bytes, NULL);
	at = attachment->names;
	if (code == LR_OK)
		memset(at, 0, room + 1);
	for (uint32_t i = 0; i < count && code == LR_OK; i++)
		code = take_region(attachment, i, &table[i], names, names_bytes, &at,
				   attachment->names + room + 1);
	free(table);
	free(names);
	return code;
}

static int take_metadata(struct lr_attachment *attachment, struct lr_talk *talk,
			 struct lr_refused *refused)
{
	struct lr_wire_metadata metadata;
	struct lr_wire_head head;
	int code = receive_head(talk, LR_WIRE_DETAILS, &head, NULL, refused);

	if (code == LR_OK)
		code = lr_talk_receive(talk, &metadata, sizeof(metadata), NULL);
	if (code < 0)
		return code;
	if (metadata.bytes > LR_WIRE_METADATA_MAX)
		return LR_ERR_PROTOCOL;
	attachment->metadata = malloc(metadata.bytes + 1);
	if (!attachment->metadata)
		return LR_ERR_NOMEM;
	attachment->metadata_bytes = metadata.bytes;
	return lr_talk_receive(talk, attachment->metadata, metadata.bytes, NULL);
}

static int take_table(struct lr_attachment *attachment, struct lr_talk *talk,
		      const struct lr_wire_head *head, const struct lr_wire_table *table,
		      struct lr_refused *refused)
{
	int code;

	attachment->info.region_count = head->second;
	attachment->info.page_size = table->page_size;
	attachment->info.cluster_size = table->cluster_size;
	memcpy(attachment->info.digest, table->digest, sizeof(table->digest));
	code = take_regions(attachment, talk, head->second, table->names_bytes);
	if (code == LR_OK && attachment->flags & LR_ATTACH_METADATA)
		code = take_metadata(attachment, talk, refused);
	return code;
}

/* The digest is over the content: another image would be another program's memory. */
static bool is_same(const struct lr_attachment *attachment, const struct lr_wire_head *head,
		    const struct lr_wire_table *table)
{
	return head->second == attachment->info.region_count
	       && memcmp(table->digest, attachment->info.digest, sizeof(table->digest)) == 0;
}

/* The head of an answer to what was sent with `sent`; also where the other side had stopped
 * listening by then: a refusal may be why. */
static int receive_answer(struct lr_talk *talk, int sent, const char *wanted,
			  struct lr_wire_head *ret_head, int *ret_fd, struct lr_refused *refused)
{
	int answer;

	if (sent != LR_OK && sent != LR_ERR_GONE)
		return sent;
	answer = receive_head(talk, wanted, ret_head, ret_fd, refused);
	return answer == LR_ERR_REFUSED || sent == LR_OK ? answer : sent;
}

int lr_attach_hello(struct lr_attachment *attachment, struct lr_talk *talk,
		    struct lr_refused *refused)
{
	bool is_known = attachment->regions != NULL;
	uint32_t flags = attachment->state_fd >= 0 ? LR_WIRE_RESUMES : 0;
	struct lr_wire_table table;
	struct lr_wire_head head;
	int code;

	if (!is_known && attachment->flags & LR_ATTACH_METADATA)
		flags |= LR_WIRE_METADATA;
	code = send_head(talk, LR_WIRE_ATTACH, flags);
	code = receive_answer(talk, code, LR_WIRE_REGIONS, &head, NULL, refused);
	if (code == LR_OK)
		code = lr_talk_receive(talk, &table, sizeof(table), NULL);
	if (code < 0)
		return code;
	if (!table_makes_sense(&head, &table))
		return LR_ERR_PROTOCOL;
	if (!is_known)
		return take_table(attachment, talk, &head, &table, refused);
	if (is_same(attachment, &head, &table))
		return lr_talk_skip(talk, head.second * sizeof(struct lr_wire_region)
						  + table.names_bytes);
	refused->code = LR_REFUSAL_IMAGE;
	strcpy(refused->text, "the service that listens there now has another image");
	return LR_ERR_REFUSED;
}

int lr_attach_hand_over(struct lr_attachment *attachment, struct lr_talk *talk,
			struct lr_refused *refused)
{
	int fds[LR_TALK_FDS_MAX] = {attachment->uffd.fd, attachment->state_fd};
	struct lr_wire_head head;
	int code, state_fd = -1;

	code = lr_talk_send(talk, attachment->request, attachment->request_bytes, fds,
			    attachment->state_fd >= 0 ? 2 : 1);
	code = receive_answer(talk, code, LR_WIRE_SERVED, &head, &state_fd, refused);
	if (code < 0)
		return code;
	if (state_fd < 0)
		return LR_ERR_PROTOCOL;
	if (attachment->state_fd >= 0)
		close(attachment->state_fd);
	attachment->state_fd = state_fd;
	return LR_OK;
}
