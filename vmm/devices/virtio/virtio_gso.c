/*
 * virtio_gso.c - what a network card does for VIRTIO_NET_F_HOST_TSO4: see virtio_gso.h.
 *
 * Every length in the frame is the guest's and is checked against the bytes that are there. Invariant: the segments carry the
 * frame's payload in order, each byte once; FIN and PSH are on the last only, CWR on the first only.
 */
#include "vmm/devices/virtio/virtio_gso.h"

#include <string.h>

enum { ETH = 14, TCP_FIN = 1, TCP_PSH = 8, TCP_CWR = 0x80 };

uint64_t fvm_gso_sum(const uint8_t *buf, size_t len, uint64_t sum)
{
    size_t i = 0;
    for (; i + 1 < len; i += 2)
        sum += (uint32_t)buf[i] << 8 | buf[i + 1];
    return i < len ? sum + ((uint32_t)buf[i] << 8) : sum;
}

uint16_t fvm_gso_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void put16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Lengths, number and checksums of the segment in `seg`: IP header of `ihl` bytes, TCP header and payload behind it. */
static void finish_headers(uint8_t *seg, size_t ihl, size_t tcp_bytes, unsigned n, uint32_t offset)
{
    uint8_t *ip = seg + ETH, *tcp = ip + ihl;
    put16(ip + 2, (uint16_t)(ihl + tcp_bytes));
    put16(ip + 4, (uint16_t)((ip[4] << 8 | ip[5]) + n));
    put16(ip + 10, 0);
    put16(ip + 10, fvm_gso_fold(fvm_gso_sum(ip, ihl, 0)));
    uint32_t seq = get32(tcp + 4) + offset;
    put16(tcp + 4, (uint16_t)(seq >> 16));
    put16(tcp + 6, (uint16_t)seq);
    put16(tcp + 16, 0);
    uint64_t pseudo = fvm_gso_sum(ip + 12, 8, 6 + (uint64_t)tcp_bytes);
    put16(tcp + 16, fvm_gso_fold(fvm_gso_sum(tcp, tcp_bytes, pseudo)));
}

unsigned fvm_gso_tcp4(const uint8_t *frame, size_t len, size_t size, uint8_t *scratch,
                      void (*emit)(void *ctx, const uint8_t *frame, size_t len), void *ctx)
{
    if (size < FVM_GSO_SIZE_MIN || len < ETH + 40 || frame[12] != 8 || frame[13] != 0 || frame[ETH] >> 4 != 4 || frame[ETH + 9] != 6)
        return 0;
    size_t ihl = 4u * (frame[ETH] & 15);
    if (ihl < 20 || len < ETH + ihl + 20)
        return 0;
    size_t tcp_header = 4u * (frame[ETH + ihl + 12] >> 4), headers = ETH + ihl + tcp_header;
    if (tcp_header < 20 || len <= headers)
        return 0;
    unsigned n = 0;
    for (size_t at = headers; at < len; n++) {
        size_t part = FVM_MIN(size, len - at);
        memcpy(scratch, frame, headers);
        memcpy(scratch + headers, frame + at, part);
        uint8_t *flags = scratch + ETH + ihl + 13;
        if (at + part < len)
            *flags &= (uint8_t)~(TCP_FIN | TCP_PSH);
        if (n)
            *flags &= (uint8_t)~TCP_CWR;
        finish_headers(scratch, ihl, tcp_header + part, n, (uint32_t)(at - headers));
        emit(ctx, scratch, headers + part);
        at += part;
    }
    return n;
}
