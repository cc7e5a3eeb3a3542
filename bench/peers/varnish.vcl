# Varnish: without its cache every request is passed ("return (pass)"); with it, its built-in rules decide. The
# parameters that its manual advises for one core and long-lived connections are on its command line.
vcl 4.1;

backend origin {
    .host = "{ORIGIN_HOST}";
    .port = "{ORIGIN_PORT}";
}

@plain sub vcl_recv {
@plain      return (pass);
@plain }
