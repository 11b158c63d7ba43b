# What is installed beside the program, and three files made from it: `ninja deb`, `ninja release`
# and `ninja bundle` (deploy/README.md).
include(GNUInstallDirs)
install(FILES deploy/vivarium.toml DESTINATION ${CMAKE_INSTALL_SYSCONFDIR}/vivarium)
install(FILES deploy/systemd/vivarium.service DESTINATION lib/systemd/system)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES models/LICENSE RENAME LICENSE.model DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME vivarium)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "Vivarium maintainers <maintainers@vivarium.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "inference server for Mamba models with durable states")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
"A gRPC server that batches many streams onto one engine, on a CPU or a GPU,
and keeps the recurrent state of every session in RocksDB: a thread of any
length resumes by id, in constant time, with no recomputation. With its
clients, tools, and a small model.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
    ${PROJECT_SOURCE_DIR}/deploy/debian/conffiles ${PROJECT_SOURCE_DIR}/deploy/debian/postinst
    ${PROJECT_SOURCE_DIR}/deploy/debian/prerm ${PROJECT_SOURCE_DIR}/deploy/debian/postrm)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/deploy/debian/move_config.cmake)
include(CPack)

add_custom_target(deb COMMAND ${CMAKE_CPACK_COMMAND} -G DEB DEPENDS vivarium
                  WORKING_DIRECTORY ${PROJECT_BINARY_DIR} VERBATIM USES_TERMINAL)
add_custom_target(release
                  COMMAND ${PROJECT_SOURCE_DIR}/deploy/make_release.sh --build ${PROJECT_BINARY_DIR}
                  DEPENDS vivarium VERBATIM USES_TERMINAL)
if(VIVARIUM_BUILD_TESTS)
  add_custom_target(bundle COMMAND ${PROJECT_SOURCE_DIR}/deploy/make_bundle.sh
                    --build ${PROJECT_BINARY_DIR} VERBATIM USES_TERMINAL)
endif()
