# Run by cpack between installing and packing: configuration belongs into /etc, not into /usr/etc.
file(RENAME "${CPACK_TEMPORARY_DIRECTORY}/usr/etc" "${CPACK_TEMPORARY_DIRECTORY}/etc")
