/* Wants namespaces of its own: apart.desc. */
