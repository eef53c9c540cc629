/*
 * switch_mac.c - which port a MAC was last seen on.
 *
 * A fixed pool, chained in buckets: the table never grows, and a port has a share, so that a guest that makes up addresses
 * fills only its own. Old entries count as absent and are taken again first when the pool is empty. Invariant: port->macs is
 * the number of entries that point at the port. Pure: knows no sockets and no clock.
 */
#include <string.h>

#include "net/switch_internal.h"

static unsigned bucket_of(const uint8_t mac[6])
{
    uint64_t key = 0;
    memcpy(&key, mac, 6);
    return (unsigned)((key * 0x9e3779b97f4a7c15ull) >> 40) % FVM_SWITCH_BUCKETS;
}

static struct fvm_switch_mac **slot_of(struct fvm_switch_mactab *tab, const uint8_t mac[6])
{
    struct fvm_switch_mac **p = &tab->bucket[bucket_of(mac)];
    while (*p && memcmp((*p)->mac, mac, 6))
        p = &(*p)->next;
    return p;
}

static void drop(struct fvm_switch_mactab *tab, struct fvm_switch_mac **slot)
{
    struct fvm_switch_mac *entry = *slot;
    *slot = entry->next;
    entry->port->macs--;
    entry->port = NULL;
    entry->next = tab->free;
    tab->free = entry;
    tab->count--;
}

void fvm_switch_mac_init(struct fvm_switch_mactab *tab)
{
    memset(tab, 0, sizeof(*tab));
    for (unsigned i = 0; i < FVM_SWITCH_MACS_MAX; i++) {
        tab->pool[i].next = tab->free;
        tab->free = &tab->pool[i];
    }
}

/* Drop entries that `port` (NULL: anybody) has not used for the age limit. */
static void drop_old(struct fvm_switch_mactab *tab, const struct fvm_switch_port *port, uint64_t now_ns)
{
    for (unsigned i = 0; i < FVM_SWITCH_BUCKETS; i++) {
        struct fvm_switch_mac **p = &tab->bucket[i];
        while (*p) {
            if ((!port || (*p)->port == port) && now_ns - (*p)->seen_ns > FVM_SWITCH_AGE_NS)
                drop(tab, p);
            else
                p = &(*p)->next;
        }
    }
}

bool fvm_switch_mac_learn(struct fvm_switch_mactab *tab, const uint8_t mac[6], struct fvm_switch_port *port, uint64_t now_ns)
{
    static const uint8_t zero[6];
    if ((mac[0] & 1) || !memcmp(mac, zero, 6))
        return false;
    struct fvm_switch_mac *entry = *slot_of(tab, mac);
    if (entry && entry->port == port) {
        entry->seen_ns = now_ns;
        return false;
    }
    if (port->macs >= port->macs_max) {
        drop_old(tab, port, now_ns);
        if (port->macs >= port->macs_max)
            return false;
        entry = *slot_of(tab, mac);
    }
    bool moved = entry != NULL;
    if (!entry) {
        if (!tab->free)
            drop_old(tab, NULL, now_ns);
        entry = tab->free;
        if (!entry)
            return false;
        tab->free = entry->next;
        memcpy(entry->mac, mac, 6);
        entry->next = tab->bucket[bucket_of(mac)];
        tab->bucket[bucket_of(mac)] = entry;
        tab->count++;
    } else {
        entry->port->macs--;
    }
    entry->port = port;
    entry->seen_ns = now_ns;
    port->macs++;
    return moved;
}

struct fvm_switch_port *fvm_switch_mac_find(struct fvm_switch_mactab *tab, const uint8_t mac[6], uint64_t now_ns)
{
    const struct fvm_switch_mac *entry = *slot_of(tab, mac);
    return entry && now_ns - entry->seen_ns <= FVM_SWITCH_AGE_NS ? entry->port : NULL;
}

void fvm_switch_mac_forget(struct fvm_switch_mactab *tab, const struct fvm_switch_port *port)
{
    for (unsigned i = 0; i < FVM_SWITCH_BUCKETS && port->macs; i++) {
        struct fvm_switch_mac **p = &tab->bucket[i];
        while (*p) {
            if ((*p)->port == port)
                drop(tab, p);
            else
                p = &(*p)->next;
        }
    }
}
