/* Linked by build.rs into a static program with glibc only. Its getaddrinfo would load the modules that nsswitch.conf
   names (mdns4_minimal, resolve, myhostname), which belong to the machine's own glibc, and the process dies there by
   SIGFPE. /etc/hosts and DNS need no module. */
#include <nss.h>

__attribute__((constructor)) static void resolve_names_without_modules(void) {
    __nss_configure_lookup("hosts", "files dns");
}
