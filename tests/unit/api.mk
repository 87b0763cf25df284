# SPDX-License-Identifier: Apache-2.0
# What the API's unit tests link beyond the rooms: http-parser is the oracle for our own parser.
LDLIBS_test_http := -lhttp_parser
