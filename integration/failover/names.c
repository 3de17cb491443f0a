/* Names that resolve anew: db.test is the address that stands in the file TEST_ADDRESS, at this moment. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    char address[64] = "";
    if (node && strcmp(node, "db.test") == 0) {
        FILE *file = fopen(getenv("TEST_ADDRESS"), "r");
        if (!file || !fgets(address, sizeof address, file)) return EAI_NONAME;
        fclose(file);
        address[strcspn(address, "\n")] = 0;
        if (!*address) return EAI_NONAME;
        return real(address, service, hints, res);
    }
    return real(node, service, hints, res);
}
